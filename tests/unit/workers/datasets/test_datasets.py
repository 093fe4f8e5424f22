"""The data sets, with real files, whole and damaged."""

import gzip
import os
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lockstep.v1.job_spec_pb2 import DataSpec
from lockstep.workers.datasets import build_data, builtin
from lockstep.workers.datasets.builtin import BuiltinDataset
from lockstep.workers.datasets.images.idx import IdxDataset
from lockstep.workers.engine import DataError
from tests.support.processes import in_a_fresh_process

CPU = torch.device("cpu")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def test_mnist_is_read_whole(mnist_root: Path) -> None:
    data = build_data(DataSpec(idx={"root": str(mnist_root)}), CPU)
    assert (len(data.train), len(data.validation), data.num_classes) == (60_000, 10_000, 10)
    assert data.input_shape == (1, 28, 28)
    inputs, targets = data.take(data.train, torch.tensor([0, 59_999]))
    assert inputs.dtype == torch.float32
    assert targets.tolist() == [5, 8]
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)


def test_standardised_pixels_have_mean_0_and_deviation_1_over_the_training_images(mnist_root: Path) -> None:
    data = build_data(DataSpec(idx={"root": str(mnist_root), "standardize": True}), CPU)
    pixels = data.transform(data.train.inputs).double()
    assert abs(float(pixels.mean())) < 1e-5
    assert abs(float(pixels.std()) - 1) < 1e-5


@pytest.fixture
def idx_root(tmp_path: Path) -> Path:
    """Four small, sound files: 6 + 3 images of 12 by 13."""
    for prefix, size in (("train", 6), ("t10k", 3)):
        pixels = bytes(range(156)) * size
        header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (size, 12, 13))
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels)
        labels = bytes((0, 0, 8, 1)) + size.to_bytes(4, "big") + bytes(n % 3 for n in range(size))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return tmp_path


def test_plain_and_gzipped_files_are_read_alike(idx_root: Path) -> None:
    data = build_data(DataSpec(idx={"root": str(idx_root)}), CPU)
    assert data.input_shape == (1, 12, 13)
    assert data.train.inputs[0, 0, 1, 0] == 13
    assert data.validation.targets.tolist() == [0, 1, 2]
    assert data.num_classes == 3


def truncate(root: Path) -> None:
    path = root / FILES[0]
    path.write_bytes(path.read_bytes()[:-1])


def damage_gzip(root: Path) -> None:
    path = root / (FILES[1] + ".gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # inside the checksum
    path.write_bytes(content)


def cut_gzip(root: Path) -> None:
    path = root / (FILES[1] + ".gz")
    path.write_bytes(path.read_bytes()[:-12])


def no_gzip(root: Path) -> None:
    (root / (FILES[1] + ".gz")).write_bytes(b"labels")


def no_idx(root: Path) -> None:
    (root / FILES[2]).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


def empty(root: Path) -> None:
    (root / FILES[2]).write_bytes(b"")


def swap(root: Path) -> None:
    shutil.copy(root / FILES[0], root / FILES[2])


def other_shape(root: Path) -> None:
    header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (3, 12, 12))
    (root / FILES[2]).write_bytes(header + bytes(3 * 144))


def no_images(root: Path) -> None:
    (root / FILES[2]).write_bytes(bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (0, 12, 13)))
    (root / (FILES[3] + ".gz")).write_bytes(gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 0))))


def no_pixels(root: Path) -> None:
    (root / FILES[2]).write_bytes(bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (3, 0, 13)))


def cut_header(root: Path) -> None:
    (root / FILES[2]).write_bytes(bytes((0, 0, 8, 3, 0, 0)))


def huge(root: Path) -> None:
    (root / FILES[0]).write_bytes(bytes((0, 0, 8, 3)) + b"\xff" * 12)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / FILES[0]).unlink(), r"neither .*train-images-idx3-ubyte nor .*\.gz is there as a file"),
        (truncate, r"should hold 936 bytes of data \(6 by 12 by 13\) but holds 935; fetch the file again"),
        (damage_gzip, "is no whole gzip file; fetch the file again"),
        (cut_gzip, "is no whole gzip file"),
        (no_gzip, "is no whole gzip file"),
        (
            no_idx,
            "is no IDX file of unsigned bytes with 3 dimensions; such a file starts with the bytes 00 00 08 03",
        ),
        (empty, "is no IDX file of unsigned bytes"),
        (swap, "has 6 t10k images but 3 t10k labels"),
        (other_shape, "training images are 12 by 13 pixels, but t10k images 12 by 12; take the four files from one"),
        (no_images, "has 0 t10k images of 12 by 13 pixels; allowed: some"),
        (no_pixels, "has 3 t10k images of 0 by 13 pixels; allowed: some"),
        (cut_header, "ends within its header; fetch the file again"),
        (huge, "should hold 79228162458924105385300197375 bytes"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(idx_root: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(idx_root)
    with pytest.raises(DataError, match=words) as caught:
        IdxDataset(str(idx_root)).load()
    assert caught.value.field == "data.idx.root"


@pytest.mark.parametrize(
    ("name", "size", "shape", "classes"),
    [
        ("digits", 1797, (1, 8, 8), 10),
        ("iris", 150, (4,), 3),
        ("wine", 178, (13,), 3),
        ("breast_cancer", 569, (30,), 2),
        ("diabetes", 442, (10,), None),
    ],
)
def test_the_built_in_data_is_there_and_split(
    name: str, size: int, shape: tuple[int, ...], classes: int | None
) -> None:
    data = BuiltinDataset(name, 0.2, seed=0)
    data.load()
    assert len(data.train) + len(data.validation) == size
    assert len(data.validation) == round(0.2 * size)
    assert data.input_shape == shape
    assert data.num_classes == classes
    if name != "digits":
        torch.testing.assert_close(data.train.inputs.mean(0), torch.zeros(shape), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*builtin.FILES, "diabetes"])
def test_a_bundled_table_is_what_scikit_learn_makes_of_it(name: str) -> None:
    bunch = getattr(import_module("sklearn.datasets"), f"load_{name}")()
    inputs, targets = builtin.read(name)
    assert np.array_equal(inputs, bunch.data)
    assert np.array_equal(targets, bunch.target)


def scikit_learn_is_imported_for(names: list[str]) -> bool:
    for name in names:
        builtin.read(name)
    return "sklearn" in sys.modules


def test_scikit_learn_is_not_imported_for_its_files() -> None:
    assert not in_a_fresh_process(scikit_learn_is_imported_for, list(builtin.FILES))


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    splits = []
    for seed in (0, 0, 1):
        data = BuiltinDataset("iris", 0.5, seed)
        data.load()
        splits.append(data.train.inputs)
    assert torch.equal(splits[0], splits[1])
    assert not torch.equal(splits[0], splits[2])


def pack(root: Path, name: str, claimed: int, packed: int) -> None:
    """Put a gzipped file there whose header claims other sizes than what it holds."""
    header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (claimed, 1, 1))
    (root / name).unlink(missing_ok=True)
    with gzip.open(root / f"{name}.gz", "wb") as file:
        file.write(header)
        for _ in range(packed >> 20):
            file.write(bytes(1 << 20))


def most_memory_of(work: Callable[[], None]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("claimed", [1, 1 << 31], ids=["little", "more than it can hold"])
def test_a_small_file_that_unpacks_to_a_huge_one_takes_no_memory(idx_root: Path, claimed: int) -> None:
    pack(idx_root, FILES[0], claimed, packed=256 << 20)

    def load() -> None:
        with pytest.raises(DataError, match=f"should hold {claimed} bytes .* but holds (more|less); fetch the file"):
            IdxDataset(str(idx_root)).load()

    assert most_memory_of(load) < 16 << 20


def test_a_file_of_holes_is_not_read(idx_root: Path) -> None:
    os.truncate(idx_root / FILES[0], 40 << 30)
    with pytest.raises(DataError, match=f"should hold 936 bytes .* but holds {(40 << 30) - 16}; fetch the file again"):
        build_data(DataSpec(idx={"root": str(idx_root)}), CPU)
    header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (1 << 16, 1 << 12, 1 << 12))
    with (idx_root / FILES[0]).open("r+b") as file:
        file.write(header)
        file.truncate(16 + (1 << 40))
    with pytest.raises(DataError, match="more than this machine has memory; take fewer"):
        build_data(DataSpec(idx={"root": str(idx_root)}), CPU)


@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "/dev/stdin", "folder", "nowhere"])
def test_what_is_no_regular_file_is_not_waited_for(idx_root: Path, target: str) -> None:
    os.mkfifo(idx_root / "pipe")
    (idx_root / "folder").mkdir()
    (idx_root / FILES[0]).unlink()
    (idx_root / FILES[0]).symlink_to(target)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DataError, match=r"neither .* nor .*\.gz is there as a file that the workers can read"):
        build_data(DataSpec(idx={"root": str(idx_root)}), CPU)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_of_the_kernel_that_never_ends_is_not_read(idx_root: Path) -> None:
    if not os.access("/proc/kmsg", os.R_OK):
        pytest.skip("only root can read /proc/kmsg")
    (idx_root / FILES[0]).unlink()
    (idx_root / FILES[0]).symlink_to("/proc/kmsg")
    with pytest.raises(DataError, match=r"is no IDX file of unsigned bytes|neither"):
        build_data(DataSpec(idx={"root": str(idx_root)}), CPU)


def test_nothing_of_a_file_that_is_none_is_told(idx_root: Path, tmp_path: Path) -> None:
    (idx_root / FILES[0]).write_text("root:secret")
    with pytest.raises(DataError) as caught:
        build_data(DataSpec(idx={"root": str(idx_root)}), CPU)
    assert "root" not in str(caught.value).replace(str(tmp_path), "").replace("data.idx.root", "")
    assert "72 6f" not in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "iris", "diabetes"])
def test_raw_examples_become_what_was_trained_on_by_what_is_told_of_them(name: str) -> None:
    data = BuiltinDataset(name, 0.2, seed=0)
    data.load()
    bunch = getattr(import_module("sklearn.datasets"), f"load_{name}")()
    raw = {"inputs": bunch.images[:, None] if name == "digits" else bunch.data}
    if name == "diabetes":
        raw["targets"] = bunch.target[:, None]
    told = data.preprocessing()
    assert told.keys() == raw.keys()
    for what, values in raw.items():
        prepared = torch.from_numpy(prepare(values, told[what])).float()
        trained = torch.cat([getattr(data.validation, what), getattr(data.train, what)])
        assert {tuple(row) for row in prepared.flatten(1).tolist()} == {
            tuple(row) for row in trained.flatten(1).tolist()
        }


@pytest.mark.parametrize("standardize", [False, True])
def test_raw_pixels_become_what_the_model_sees_by_what_is_told_of_them(idx_root: Path, standardize: bool) -> None:
    data = IdxDataset(str(idx_root), standardize)
    data.load()
    prepared = prepare(data.train.inputs.double().numpy(), data.preprocessing()["inputs"])
    torch.testing.assert_close(torch.from_numpy(prepared).float(), data.transform(data.train.inputs))


def prepare(raw: np.ndarray, told: dict[str, Any]) -> np.ndarray:
    if "divide_by" in told:
        divided: np.ndarray = raw / told["divide_by"]
        return divided
    scaled: np.ndarray = (raw - np.array(told["mean"])) / np.array(told["std"])
    return scaled
