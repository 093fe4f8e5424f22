"""Files of checkpoints, read wherever they lie and checked against what was written.

Nothing of a file on a disk is sent before all of it was compared with what the workers have told: whoever may write
beside a checkpoint can put another file in its place, which the server may read and others may not. Where fsspec reads,
only those can put a file there who may write there, and it is compared while it is sent.

Everything here blocks: it is called by `FilePool`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec.core

from lockstep.contract.bounds import MOST_MANIFEST_BYTES
from lockstep.contract.checkpoints import MANIFEST_FILE, Manifest
from lockstep.contract.spec.values import show
from lockstep.contract.wording import count
from lockstep.server.errors import CheckpointNotFound, CheckpointUnreadable, DataLoss, LockstepError
from lockstep.server.jobs.records import StoredCheckpoint, StoredFile
from lockstep.server.process.foreign_files import local_path, open_file

CHUNK_BYTES = 1024 * 1024
CHECK_BYTES = 64 * CHUNK_BYTES


class CheckpointFileReader:
    """One file of a checkpoint, opened.

    Attributes:
        file: its name and size, and the SHA-256 that its bytes must have.
        where: which file this is, in words.
    """

    def __init__(self, checkpoint: StoredCheckpoint, name: str) -> None:
        """Open a file.

        Raises:
            CheckpointNotFound: the checkpoint has no such file, or it was removed since.
            CheckpointUnreadable: it cannot be reached from here.
            DataLoss: it has not the size that was written.
        """
        self.where = where(checkpoint, name)
        self._lock, self._is_closed = threading.Lock(), False
        listed = {file.name: file for file in checkpoint.files}
        if name != MANIFEST_FILE and name not in listed:
            known = ", ".join(sorted({*listed, MANIFEST_FILE}))
            raise CheckpointNotFound(
                f"checkpoint {checkpoint.step} of {checkpoint.job_id} has no file {show(name)}; allowed: {known}"
            )
        try:
            path = local_path(checkpoint.uri)
            self._is_local = path is not None
            self._stream = _open_remote(checkpoint.uri, name) if path is None else _open_local(Path(path), name)
        except Exception as error:
            raise self._translated(error, checkpoint.uri) from error
        try:
            self.file = listed.get(name) or self._describe(checkpoint)
            if self._is_local:
                self._check_size(os.fstat(self._stream.fileno()).st_size)
        except BaseException:
            self._stream.close()
            raise
        self._start()

    def _start(self) -> None:
        self._hash = hashlib.sha256()
        self._left = self.file.size_bytes

    def check(self) -> bool:
        """Compare the next part of a file on a disk with what was written, before anything of it is sent.

        Returns:
            Whether there is more to compare; afterwards `read` begins at the start.

        Raises:
            DataLoss: it is not what was written.
            CheckpointUnreadable: the file cannot be reached any more.
        """
        if not self._is_local:
            return False
        with self._in_use():
            for _ in range(CHECK_BYTES // CHUNK_BYTES):
                if not self._next():
                    self._stream.seek(0)
                    self._start()
                    return False
        return True

    def read(self) -> bytes:
        """Read on.

        Returns:
            The next bytes, at most 1 MiB; none at the end, when all of them were as they were written.

        Raises:
            DataLoss: they were not.
            CheckpointUnreadable: the file cannot be reached any more.
        """
        with self._in_use():
            return self._next()

    def close(self) -> None:
        """Close the file, now or as soon as nobody reads it any more."""
        self._is_closed = True
        self._close_if_asked()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        finally:
            self._close_if_asked()

    def _close_if_asked(self) -> None:
        if self._is_closed and self._lock.acquire(blocking=False):
            try:
                self._stream.close()
            finally:
                self._lock.release()

    def _next(self) -> bytes:
        # One byte more than there should be, to see whether the file goes on.
        data = self._read(min(CHUNK_BYTES, self._left) or 1)
        if len(data) > self._left:
            self._check_size(self.file.size_bytes + 1)
        if not data:
            self._check_size(self.file.size_bytes - self._left)
            if self._hash.hexdigest() != self.file.sha256:
                raise DataLoss(f"{self.where} is damaged: its bytes are not those that were written; take another one")
        self._hash.update(data)
        self._left -= len(data)
        return data

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self.file.size_bytes:
            raise DataLoss(f"{self.where} is longer than the {self.file.size_bytes:,} bytes that were written")
        if size_bytes < self.file.size_bytes:
            short = self.file.size_bytes - size_bytes
            raise DataLoss(f"{self.where} ends {count(short, 'byte')} before the end of what was written")

    def _describe(self, checkpoint: StoredCheckpoint) -> StoredFile:
        data = self._read(MOST_MANIFEST_BYTES)
        self._stream.seek(0)
        if not _says(data, checkpoint):
            raise DataLoss(f"{self.where} is damaged: it does not say what was written; take another one")
        return StoredFile(MANIFEST_FILE, len(data), hashlib.sha256(data).hexdigest())

    def _read(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except Exception as error:
            raise self._translated(error, "") from error
        return data

    def _translated(self, error: Exception, uri: str) -> LockstepError:
        if isinstance(error, FileNotFoundError):
            return CheckpointNotFound(f"{self.where} is not at {uri} any more; it was removed")
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        return CheckpointUnreadable(f"the server cannot read {self.where}: {words}")


def where(checkpoint: StoredCheckpoint, name: str) -> str:
    """Say which file this is."""
    return f"{show(name)[1:-1]} of checkpoint {checkpoint.step} of {checkpoint.job_id}"


def _open_local(step: Path, name: str) -> Any:
    return io.BufferedReader(io.FileIO(open_file(step, name)), CHUNK_BYTES)


def _open_remote(uri: str, name: str) -> Any:
    if "::" in uri:
        raise ValueError('its folder holds "::", which chains file systems')
    filesystem, folder = fsspec.core.url_to_fs(uri)
    path = f"{folder.rstrip('/')}/{name}"
    # Some file systems keep what they have seen; a file may have been removed since.
    filesystem.invalidate_cache(path)
    return filesystem.open(path, "rb")


def _says(manifest: bytes, checkpoint: StoredCheckpoint) -> bool:
    """Whether a manifest is that of a checkpoint, by all that was told of it."""
    try:
        content: Manifest = json.loads(manifest)
        files = sorted((file["name"], file["size_bytes"], file["sha256"]) for file in content["files"])
        job_id = (content.get("facts") or {}).get("job_id", checkpoint.job_id)
        told = sorted((file.name, file.size_bytes, file.sha256) for file in checkpoint.files)
        return files == told and (content["step"], job_id) == (checkpoint.step, checkpoint.job_id)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return False
