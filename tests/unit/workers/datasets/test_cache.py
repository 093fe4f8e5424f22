"""Data that stays in a process for the next job: what counts as the same, what is kept, and for how long."""

import gzip
import io
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from lockstep.v1.job_spec_pb2 import DataSpec
from lockstep.workers.datasets import DataCache, build_data, cache, data_of
from lockstep.workers.datasets.cache import Digests
from lockstep.workers.datasets.images import idx_file
from lockstep.workers.engine import DataError, DataModule, Examples, data_module

CPU = torch.device("cpu")
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
LONG_AGO_S = 1_000_000_000


class Counting(io.BufferedReader):
    """A file that counts itself when it was read to its end."""

    def __init__(self, path: Path, whole: Counter[str]) -> None:
        super().__init__(io.FileIO(path))
        self._path, self._whole = path, whole

    def close(self) -> None:
        if not self.closed and self.tell() == self._path.stat().st_size:
            self._whole[self._path.name] += 1
        super().close()


@pytest.fixture(autouse=True)
def reading(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Files are trusted at once; counts how often each is read to its end, by name."""
    monkeypatch.setattr(cache, "SETTLED_AFTER_S", -3600.0)
    whole: Counter[str] = Counter()
    for module in (cache, idx_file):
        monkeypatch.setattr(module, "open_regular", lambda path: Counting(path, whole))
    return whole


def write(root: Path, shade: int = 0, size: int = 6) -> Path:
    """Write four small, sound files."""
    for prefix in ("train", "t10k"):
        header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (size, 12, 12))
        (root / f"{prefix}-{IMAGES}").write_bytes(header + bytes([shade]) * (144 * size))
        labels = bytes((0, 0, 8, 1)) + size.to_bytes(4, "big") + bytes(n % 3 for n in range(size))
        (root / f"{prefix}-{LABELS}").write_bytes(labels)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return write(tmp_path / "data")


def spec_of(root: Path, **options: bool) -> DataSpec:
    return DataSpec(idx={"root": str(root), **options})


def load(kept: DataCache, root: Path, **options: bool) -> DataModule:
    return build_data(spec_of(root, **options), CPU, kept)


def synthetic(seed: int, rows: int = 100) -> DataSpec:
    """Data of 8 bytes a row."""
    return DataSpec(synthetic_regression={"w": [1.0], "train_size": rows - 10, "validation_size": 10, "seed": seed})


def test_the_same_data_again_is_the_same_object_and_no_file_is_read(root: Path, reading: Counter[str]) -> None:
    kept = DataCache(1 << 20)
    reading.clear()
    first = load(kept, root)
    assert set(reading.values()) == {2}, "once for the digest and once for the content"
    reading.clear()
    assert load(kept, root) is first
    assert not reading


def test_mnist_is_read_once(mnist_root: Path, reading: Counter[str]) -> None:
    kept = DataCache(1 << 30)
    first = load(kept, mnist_root)
    assert kept.size_bytes == 70_000 * (784 + 8)
    reading.clear()
    assert load(kept, mnist_root) is first
    assert f"train-{IMAGES}.gz" not in reading, "but for its header"


def test_without_a_cache_nothing_is_kept(root: Path) -> None:
    assert build_data(spec_of(root), CPU) is not build_data(spec_of(root), CPU)


def test_a_file_that_was_touched_is_read_to_see_that_it_is_as_it_was(root: Path, reading: Counter[str]) -> None:
    kept = DataCache(1 << 20)
    first = load(kept, root)
    os.utime(root / f"train-{IMAGES}")
    reading.clear()
    assert load(kept, root) is first
    assert reading == {f"train-{IMAGES}": 1}
    reading.clear()
    assert load(kept, root) is first
    assert not reading


def test_changed_content_is_seen_even_with_the_size_and_the_time_of_before(root: Path) -> None:
    kept = DataCache(1 << 20)
    path = root / f"train-{IMAGES}"
    os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    before = load(kept, root)
    content = bytearray(path.read_bytes())
    content[-1] = 255
    with path.open("r+b") as file:  # the same inode
        file.write(content)
    os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    after = load(kept, root)
    assert [int(read.train.inputs[-1, 0, -1, -1]) for read in (before, after)] == [0, 255]


def test_a_file_that_was_put_in_the_place_of_another_is_seen(root: Path, tmp_path: Path) -> None:
    kept = DataCache(1 << 20)
    path = root / f"train-{IMAGES}"
    os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    load(kept, root)
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", shade=7) / f"train-{IMAGES}"
    os.utime(other, (LONG_AGO_S, LONG_AGO_S))
    other.replace(path)
    assert load(kept, root).train.inputs[0, 0, 0, 0] == 7


def test_what_was_there_before_is_found_again(root: Path) -> None:
    kept = DataCache(1 << 20)
    first = load(kept, root)
    write(root, shade=9)
    assert load(kept, root).train.inputs[0, 0, 0, 0] == 9
    write(root)
    assert load(kept, root) is first


def test_a_file_that_has_just_been_written_is_not_trusted(
    root: Path, reading: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SETTLED_AFTER_S", 3600.0)
    os.utime(root / f"train-{IMAGES}", (LONG_AGO_S, LONG_AGO_S))  # says nothing
    kept = DataCache(1 << 20)
    first = load(kept, root)
    reading.clear()
    assert load(kept, root) is not first
    assert set(reading.values()) == {2}
    assert kept.size_bytes == 0


def test_data_that_is_kept_stays_when_its_files_have_just_been_touched(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = DataCache(1 << 20)
    first = load(kept, root)
    monkeypatch.setattr(cache, "SETTLED_AFTER_S", 3600.0)
    os.utime(root / f"train-{IMAGES}")
    assert load(kept, root) is first
    assert load(kept, root) is first


def test_a_file_that_changes_while_it_is_loaded_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = DataCache(1 << 20)
    data = data_of(spec_of(root))
    load_it = data.load

    def load_late() -> None:
        write(root, shade=5)
        load_it()

    monkeypatch.setattr(data, "load", load_late)
    assert kept.get(b"name", CPU, data).train.inputs[0, 0, 0, 0] == 5
    assert kept.size_bytes == 0


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_file_that_is_gone_is_named_as_ever(root: Path, is_kept: bool) -> None:
    kept = DataCache(1 << 20)
    if is_kept:
        load(kept, root)
    (root / f"t10k-{LABELS}").unlink()
    with pytest.raises(DataError, match=rf"neither .*t10k-{LABELS} nor .* is there"):
        load(kept, root)


def test_a_damaged_file_is_named_as_ever_and_mended_it_is_read(root: Path) -> None:
    kept = DataCache(1 << 20)
    path = root / f"t10k-{IMAGES}"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    for _ in range(2):
        with pytest.raises(DataError, match="fetch the file again"):
            load(kept, root)
    path.write_bytes(content)
    load(kept, root)


def test_a_file_that_cannot_be_read_is_told_in_the_usual_words(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(digests: Digests, path: Path) -> str:
        raise PermissionError

    monkeypatch.setattr(Digests, "of", refuse)
    (root / f"train-{IMAGES}").unlink()
    (root / f"train-{IMAGES}.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="is no whole gzip file"):
        load(DataCache(1 << 20), root)


def test_the_same_content_in_another_folder_is_the_same_data(root: Path, tmp_path: Path) -> None:
    kept = DataCache(1 << 20)
    first = load(kept, root)
    assert load(kept, Path(shutil.copytree(root, tmp_path / "copy"))) is first


def test_a_plain_file_goes_before_the_same_in_gzip(root: Path) -> None:
    kept = DataCache(1 << 20)
    path = root / f"train-{IMAGES}"
    packed = path.with_name(path.name + ".gz")
    content = path.read_bytes()
    packed.write_bytes(gzip.compress(content[:-1] + b"\x01"))
    path.unlink()
    assert load(kept, root).train.inputs[-1, 0, -1, -1] == 1
    path.write_bytes(content)
    assert load(kept, root).train.inputs[-1, 0, -1, -1] == 0


def test_other_options_are_other_data(root: Path) -> None:
    kept = DataCache(1 << 20)
    assert load(kept, root, standardize=True) is not load(kept, root)
    assert build_data(synthetic(1), CPU, kept) is not build_data(synthetic(2), CPU, kept)
    assert build_data(synthetic(1), CPU, kept) is build_data(synthetic(1), CPU, kept)


def test_data_that_a_job_has_written_into_is_loaded_anew(root: Path) -> None:
    kept = DataCache(1 << 20)
    first = load(kept, root)
    first.train.inputs[0].fill_(3)
    second = load(kept, root)
    assert second.train.inputs[0, 0, 0, 0] == 0
    second.validation = Examples(second.validation.inputs + 1, second.validation.targets)
    third = load(kept, root)
    assert third.validation.inputs[0, 0, 0, 0] == 0
    assert load(kept, root) is third


def test_a_loss_that_trains_through_the_data_does_not_spoil_it() -> None:
    kept = DataCache(1 << 20)
    data = build_data(synthetic(1), CPU, kept)
    inputs, _ = data.take(data.train, slice(0, 4))
    inputs.mul(2).sum()
    assert build_data(synthetic(1), CPU, kept) is data


def test_what_was_not_used_for_longest_goes_first() -> None:
    kept = DataCache(2000)  # holds two
    one, two = (build_data(synthetic(seed), CPU, kept) for seed in (1, 2))
    assert build_data(synthetic(1), CPU, kept) is one
    build_data(synthetic(3), CPU, kept)
    assert kept.size_bytes == 1600
    assert build_data(synthetic(1), CPU, kept) is one
    assert build_data(synthetic(2), CPU, kept) is not two


def test_data_that_is_larger_than_all_is_used_and_puts_nothing_out() -> None:
    kept = DataCache(1000)
    small = build_data(synthetic(1), CPU, kept)
    large = build_data(synthetic(2, rows=1000), CPU, kept)
    assert len(large.train) == 990
    assert kept.size_bytes == 800
    assert build_data(synthetic(1), CPU, kept) is small


def test_a_cache_that_is_cleared_holds_nothing() -> None:
    kept = DataCache(1000)
    first = build_data(synthetic(1), CPU, kept)
    kept.clear()
    assert kept.size_bytes == 0
    assert build_data(synthetic(1), CPU, kept) is not first


def test_digests_are_remembered_for_so_many_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_FILES", 2)
    digests = Digests()
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
        digests.of(path)
    assert [digests.are_certain([path]) for path in paths] == [False, True, True]


def test_a_file_of_which_the_attributes_are_remembered_is_opened_to_see_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where a name's attributes may be some seconds old unless the file is opened."""
    kept = DataCache(1 << 20)
    load(kept, root)
    remembered = {str(path): path.stat() for path in root.iterdir()}
    real_stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: remembered.get(str(path)) or real_stat(path, **how))
    write(root, shade=9)
    assert load(kept, root).train.inputs[0, 0, 0, 0] == 9


# The digest of data.


def test_the_digest_is_of_what_the_data_is_and_not_of_how_it_lies_in_files(root: Path, tmp_path: Path) -> None:
    plain = build_data(spec_of(root)).digest()
    packed = Path(shutil.copytree(root, tmp_path / "packed"))
    for path in list(packed.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert build_data(spec_of(packed)).digest() == plain
    write(root, shade=1)
    assert build_data(spec_of(root)).digest() != plain


def test_every_part_of_the_data_counts() -> None:
    def data(*numbers: int) -> DataModule:
        module = DataModule()
        parts = [torch.tensor([number]) for number in numbers]
        module.train, module.validation = Examples(*parts[:2]), Examples(*parts[2:])
        return module

    digests = {data(*numbers).digest() for numbers in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)]}
    assert len(digests | {data(0, 0, 0, 1).digest()}) == 5
    assert data(1, 2, 3, 4).digest() == data(1, 2, 3, 4).digest()


def test_data_that_is_computed_has_a_digest_too() -> None:
    assert build_data(synthetic(1)).digest() == build_data(synthetic(1)).digest() != build_data(synthetic(2)).digest()


def test_the_digest_of_data_that_is_kept_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = DataCache(1 << 20)
    digest = build_data(synthetic(1), CPU, kept).digest()
    with monkeypatch.context() as patch:
        patch.setattr(data_module, "digest_of", lambda tensors: pytest.fail("it is known"))
        data = build_data(synthetic(1), CPU, kept)
        assert data.digest() == digest
    data.train.inputs[0].fill_(3)
    assert data.digest() != digest, "it has changed"
