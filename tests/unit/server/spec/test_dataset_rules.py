from __future__ import annotations

from pathlib import Path

import pytest

from lockstep.server.spec.rules import Site
from lockstep.server.spec.validation import resolve
from tests.support.specs import DIGITS, LENET, SITE, spec_of, violations_of


def test_a_relative_root_starts_at_the_servers_folder() -> None:
    assert resolve(spec_of(LENET), SITE).data.idx.root == "/srv/mnist"
    assert resolve(spec_of(LENET, data__idx__root="../m/"), SITE).data.idx.root == "/m"
    assert resolve(spec_of(LENET, data__idx__root="/a/b"), SITE).data.idx.root == "/a/b"


def write_idx_files(folder: Path, suffix: str = "") -> None:
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (folder / f"{name}{suffix}").write_bytes(b"")


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty one", "x" * 300, "a file/below", "closed"])
def test_what_lies_where_there_is_no_data_is_not_told(tmp_path: Path, what: str) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "an empty one").mkdir()
    (tmp_path / "closed").mkdir(mode=0)
    site = Site(tmp_path, shares_files_with_workers=True)
    [violation] = violations_of(spec_of(LENET, data__idx__root=what), site)
    assert violation.message.startswith(f"data.idx.root: {tmp_path}"[:80])
    words = violation.message
    assert " is no folder with the four IDX files that can be read; allowed: a folder with train-images-idx3" in words
    assert violation.message.endswith("a relative path starts at the server's working directory")


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_idx_files(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    site = Site(tmp_path, shares_files_with_workers=True)
    [violation] = violations_of(spec_of(LENET, data__idx__root="."), site)
    assert f"data.idx.root: {tmp_path} has no t10k-labels-idx1-ubyte[.gz];" in violation.message


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_complete_folder_is_taken(tmp_path: Path, suffix: str) -> None:
    write_idx_files(tmp_path, suffix)
    resolve(spec_of(LENET, data__idx__root="."), Site(tmp_path, shares_files_with_workers=True))


@pytest.mark.parametrize(("fraction", "train"), [(0.2, 1438), (0.999999, 1), (1e-9, 1796), (0.5, 899)])
def test_the_size_of_the_training_part_is_known_at_submit(fraction: float, train: int) -> None:
    fits = {"data__builtin__validation_fraction": fraction, "resources__shards": 1, "training__batch_size": train}
    resolve(spec_of(DIGITS, **fits), SITE)
    [violation] = violations_of(spec_of(DIGITS, **(fits | {"training__batch_size": train + 1})))
    assert f"at most {train:,}, the number of training examples" in violation.message
