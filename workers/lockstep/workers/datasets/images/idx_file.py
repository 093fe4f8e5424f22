"""IDX files of unsigned bytes, plain or gzipped, which may be anything: what a spec names, others may have written.

The format, from http://yann.lecun.com/exdb/mnist: two zero bytes, one for the element type (8: unsigned byte), one for
the number of dimensions; each dimension as a big-endian 32-bit integer; then the elements, row by row.

The header and the size of the file are looked at first. No more is read, unpacked or held than the header says. Errors
say what kind of thing is wrong, and nothing of what is in a file that is no IDX file.
"""

import gzip
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lockstep.contract.idx import magic
from lockstep.workers.engine import DataError
from lockstep.workers.engine.state.storage import open_regular

FIELD = "data.idx.root"
MOST_GZIP_PACKS = 1032
"""Bytes that deflate makes of one at most: 258 of two bits."""
BLOCK_BYTES = 1 << 20


class _Opened(NamedTuple):
    """An IDX file, open behind its header: its shape, and the bytes that it must hold from there on."""

    file: IO[bytes]
    shape: tuple[int, ...]
    size_bytes: int


def find_idx(path: Path) -> Path:
    """`path`, or the same with ".gz", whichever can be read.

    Raises:
        DataError: neither can.
    """
    for candidate in (path, path.with_name(path.name + ".gz")):
        try:
            open_regular(candidate).close()
        except OSError:
            continue
        return candidate
    raise DataError(
        FIELD,
        f"neither {path} nor {path.name}.gz is there as a file that the workers can read; put one of them there, or "
        "name another folder",
    )


def check_idx(path: Path, dimensions: int) -> None:
    """Look at the header and the size of an IDX file.

    Raises:
        DataError: it is none, or cannot hold what its header says.
    """
    with _opened(path, dimensions):
        pass


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The elements of an IDX file, uint8.

    Args:
        path: the file.
        dimensions: how many it must have.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    with _opened(path, dimensions) as (file, shape, size_bytes):
        try:
            elements = np.empty(size_bytes, dtype=np.uint8)
        except MemoryError as error:
            raise DataError(FIELD, _too_large(path, shape, size_bytes)) from error
        view, held = elements.data, 0
        while held < size_bytes and (count := file.readinto(view[held : held + BLOCK_BYTES])):  # type: ignore[attr-defined]
            held += count
        if held < size_bytes or file.read(1):
            raise DataError(FIELD, _other_size(path, shape, size_bytes, str(held) if held < size_bytes else "more"))
        return torch.from_numpy(elements).view(shape)


@contextmanager
def _opened(path: Path, dimensions: int) -> Iterator[_Opened]:
    try:
        with open_regular(path) as plain:
            stored_bytes = os.fstat(plain.fileno()).st_size
            if path.suffix != ".gz":
                yield _behind_header(plain, path, dimensions, stored_bytes, is_packed=False)
            else:
                with gzip.open(plain) as unpacked:
                    yield _behind_header(unpacked, path, dimensions, stored_bytes, is_packed=True)  # type: ignore[arg-type]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(FIELD, f"{path} is no whole gzip file; fetch the file again") from error
    except OSError as error:
        raise DataError(FIELD, f"{path} cannot be read: {error.strerror or error}") from error


def _behind_header(file: IO[bytes], path: Path, dimensions: int, stored_bytes: int, *, is_packed: bool) -> _Opened:
    header_bytes = 4 + 4 * dimensions
    # A file of no size may have no end, as those of /proc.
    header = file.read(header_bytes) if stored_bytes else b""
    if 4 <= len(header) < header_bytes:
        raise DataError(FIELD, f"{path} ends within its header; fetch the file again")
    if header[:4] != magic(dimensions):
        raise DataError(
            FIELD,
            f"{path} is no IDX file of unsigned bytes with {dimensions} dimension{'s' if dimensions > 1 else ''}; "
            f"such a file starts with the bytes 00 00 08 {dimensions:02x}",
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    size_bytes = int(np.prod(shape, dtype=object))
    held = stored_bytes - header_bytes
    if held != size_bytes if not is_packed else size_bytes > stored_bytes * MOST_GZIP_PACKS:
        raise DataError(FIELD, _other_size(path, shape, size_bytes, "less" if is_packed else str(held)))
    if size_bytes > _memory_bytes():
        raise DataError(FIELD, _too_large(path, shape, size_bytes))
    return _Opened(file, shape, size_bytes)


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _other_size(path: Path, shape: Iterable[int], size_bytes: int, held: str) -> str:
    return f"{path} should hold {size_bytes} bytes of data ({by(shape)}) but holds {held}; fetch the file again"


def _too_large(path: Path, shape: Iterable[int], size_bytes: int) -> str:
    return f"{path} holds {size_bytes} bytes of data ({by(shape)}), more than this machine has memory; take fewer"


def by(shape: Iterable[int]) -> str:
    """A shape in words."""
    return " by ".join(map(str, shape))
