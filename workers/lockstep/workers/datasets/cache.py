"""Data that stays in a process for the jobs after, known by the content of its files."""

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from lockstep.workers.engine import DataModule
from lockstep.workers.engine.data_module import Contents
from lockstep.workers.engine.state.storage import open_regular

SETTLED_AFTER_S = 2.0
"""A file that was changed more lately than this may be changed again without getting another time."""
MOST_FILES = 1000
"""Files of which the digest is remembered."""
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Stamp:
    """What tells without reading a file that it is as it was.

    Nobody can set the time of the last change back, as one can that of the last writing.
    """

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """That of the file with this name: it is opened, since NFS looks at the server only then.

        Raises:
            OSError: it cannot be opened.
        """
        with open_regular(path) as file:
            return cls.of_opened(file.fileno())

    @classmethod
    def of_opened(cls, descriptor: int) -> "Stamp":
        status = os.fstat(descriptor)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def is_settled(self) -> bool:
        """Whether a later change would show."""
        return time.time() - self.ctime_ns / 1e9 > SETTLED_AFTER_S


class Digests:
    """The digests of files, which are read only when they have changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stamp, str]] = {}

    def of(self, path: Path) -> str:
        """SHA-256 of a file's content, hex.

        Raises:
            OSError: it cannot be read.
        """
        known = self._known.get(path)
        if known is not None and known[0] == Stamp.of(path):
            return known[1]
        digest = hashlib.sha256()
        with open_regular(path) as file:
            stamp = Stamp.of_opened(file.fileno())
            left = stamp.size_bytes  # and no more: what grows for ever has no digest
            while left > 0 and (block := file.read(min(BLOCK_BYTES, left))):
                digest.update(block)
                left -= len(block)
        self._known.pop(path, None)
        if stamp.is_settled:
            self._known[path] = stamp, digest.hexdigest()
        while len(self._known) > MOST_FILES:
            del self._known[next(iter(self._known))]
        return digest.hexdigest()

    def are_certain(self, paths: Iterable[Path]) -> bool:
        """Whether files are still those of which the digest was last asked for."""
        try:
            return all(path in self._known and self._known[path][0] == Stamp.of(path) for path in paths)
        except OSError:
            return False


@dataclass
class Entry:
    """Data that is kept, and what it held when it was loaded."""

    data: DataModule
    loaded: Contents

    def is_unspoilt(self) -> bool:
        """Whether nobody has replaced its tensors or written into them since."""
        return self.loaded.are_those_of(self.data)

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.loaded.tensors)


class DataCache:
    """Loaded data sets; the one that was not used for longest goes first.

    Args:
        max_bytes: the most that its tensors take together. Data that is larger is loaded and not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._digests = Digests()
        self._entries: dict[tuple[object, ...], Entry] = {}

    @property
    def size_bytes(self) -> int:
        """What the tensors take now, in the memory of the device where they lie."""
        return sum(entry.size_bytes for entry in list(self._entries.values()))  # another thread may train

    def get(self, name: bytes, device: torch.device, data: DataModule) -> DataModule:
        """Data on `device`: as it was loaded before, or `data`, which is loaded then.

        Args:
            name: says with the content of its files what the data is.
            device: where it shall lie.
            data: not loaded yet.

        Raises:
            DataError: it cannot be had, or is not what the spec says.
        """
        paths = data.files()
        try:
            key = (name, device, *(self._digests.of(path) for path in paths))
        except OSError:
            key = ()  # loading tells what is wrong
        entry = self._entries.pop(key, None)
        is_known = entry is not None and entry.is_unspoilt()
        if entry is None or not is_known:
            data.load()
            data.move_to(device)
            entry = Entry(data, Contents.of(data))
        # What was loaded now may be of files that were changed after their digests were taken.
        if is_known or (key and entry.size_bytes <= self._max_bytes and self._digests.are_certain(paths)):
            self._entries[key] = entry
            while self.size_bytes > self._max_bytes:
                del self._entries[next(iter(self._entries))]
        return entry.data

    def clear(self) -> None:
        """Keep nothing."""
        self._entries.clear()
