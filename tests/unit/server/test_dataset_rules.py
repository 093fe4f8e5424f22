from __future__ import annotations

from pathlib import Path

import pytest

from lockstep.server.rules import Site
from lockstep.server.validation import resolve
from tests.unit.server.specs import DIGITS, LENET, SITE, spec_of, violations_of


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


def test_a_folder_that_is_not_there_is_named_by_its_absolute_path(tmp_path: Path) -> None:
    site = Site(tmp_path, shares_files_with_workers=True)
    [violation] = violations_of(spec_of(LENET), site)
    assert violation.message.startswith(f"data.idx.root: {tmp_path}/mnist does not exist;")


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "mnist").write_bytes(b"")
    [violation] = violations_of(spec_of(LENET), Site(tmp_path, shares_files_with_workers=True))
    assert f"{tmp_path}/mnist is no folder;" in violation.message


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


@pytest.mark.parametrize("root", ["x" * 300, "file/below"])
def test_a_folder_that_the_system_refuses_to_look_at_is_an_error_of_the_spec(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("")
    site = Site(tmp_path, shares_files_with_workers=True)
    [violation] = violations_of(spec_of(LENET, data__idx__root=root), site)
    assert " cannot be read (" in violation.message
    assert violation.message.endswith("a relative path starts at the server's working directory")
