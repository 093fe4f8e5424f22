"""Files of checkpoints, read wherever they lie and checked against what was written.

Everything here blocks: it is called from threads.
"""

from __future__ import annotations

import hashlib
from typing import Any

import fsspec.core

from lockstep.server.errors import CheckpointNotFound, CheckpointUnreadable, DataLoss, LockstepError
from lockstep.server.rules import show
from lockstep.server.store import StoredCheckpoint, StoredFile

CHUNK_BYTES = 1024 * 1024
MANIFEST = "manifest.json"

# The manifest says what the other files are, and nothing else says what it is: it is read whole.
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024


class CheckpointFileReader:
    """One file of a checkpoint, opened.

    Attributes:
        file: its name and size, and the SHA-256 that its bytes must have.
    """

    def __init__(self, checkpoint: StoredCheckpoint, name: str) -> None:
        """Open a file.

        Raises:
            CheckpointNotFound: the checkpoint has no such file, or it was removed since.
            CheckpointUnreadable: it cannot be reached from here.
            DataLoss: it has not the size that was written.
        """
        self._where = f"{name} of checkpoint {checkpoint.step} of job {checkpoint.job_id}"
        self._hash = hashlib.sha256()
        self._left = 0
        listed = {file.name: file for file in checkpoint.files}
        if name != MANIFEST and name not in listed:
            known = ", ".join(sorted({*listed, MANIFEST}))
            raise CheckpointNotFound(
                f"checkpoint {checkpoint.step} of job {checkpoint.job_id} has no file {show(name)}; allowed: {known}"
            )
        try:
            filesystem, folder = fsspec.core.url_to_fs(checkpoint.uri)
            path = f"{folder.rstrip('/')}/{name}"
            # Some file systems keep what they have seen; a file may have been removed since.
            filesystem.invalidate_cache(path)
            self._stream: Any = filesystem.open(path, "rb")
        except Exception as error:
            raise self._translated(error, checkpoint.uri) from error
        try:
            self.file = listed.get(name) or self._describe(name)
            self._left = self.file.size_bytes
        except BaseException:
            self._stream.close()
            raise

    def read(self) -> bytes:
        """Read on.

        Returns:
            The next bytes, at most 1 MiB; none at the end, when all of them were as they were written.

        Raises:
            DataLoss: they were not.
            CheckpointUnreadable: the file cannot be reached any more.
        """
        # One byte more than there should be, to see whether the file goes on.
        data = self._read(min(CHUNK_BYTES, self._left) or 1)
        if len(data) > self._left:
            raise DataLoss(f"{self._where} is longer than the {self.file.size_bytes:,} bytes that were written")
        if not data and self._left:
            raise DataLoss(f"{self._where} ends {self._left:,} bytes before the end of what was written")
        if not data and self._hash.hexdigest() != self.file.sha256:
            raise DataLoss(f"{self._where} is damaged: its bytes are not those that were written; take another one")
        self._hash.update(data)
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _describe(self, name: str) -> StoredFile:
        data = self._read(_MAX_MANIFEST_BYTES)
        self._stream.seek(0)
        return StoredFile(name, len(data), hashlib.sha256(data).hexdigest())

    def _read(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except Exception as error:
            raise self._translated(error, "") from error
        return data

    def _translated(self, error: Exception, uri: str) -> LockstepError:
        if isinstance(error, FileNotFoundError):
            return CheckpointNotFound(f"{self._where} is not at {uri} any more; it was removed")
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        return CheckpointUnreadable(f"the server cannot read {self._where}: {words}")
