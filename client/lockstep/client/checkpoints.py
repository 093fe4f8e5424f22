"""Checkpoints of a job: found, fetched and checked.

    DIRECTORY/step-000000000200/model.safetensors       the weights, under the names of the model's state_dict
                                training.safetensors    optimizer and what else training needs
                                manifest.json           what the two are

A download is laid out as the server lays out a checkpoint, so that `init_from: {uri: …}` in a spec can name the folder.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.client._entry_points import how_to_install
from lockstep.client.errors import DataLoss, MissingPackage
from lockstep.client.types import Checkpoint, CheckpointFile
from lockstep.contract.checkpoints import MANIFEST_FILE, MODEL_FILE, folder_of
from lockstep.v1.checkpoint_service_pb2 import (
    DownloadCheckpointRequest,
    DownloadCheckpointResponse,
    DownloadHeader,
    ListCheckpointsRequest,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lockstep.client.client import Client


# Told how many bytes have come, and how many come in all.
Tell = Callable[[int, int], None]


def list_checkpoints(client: Client, job_id: str) -> list[Checkpoint]:
    """Read which checkpoints of a job are kept, newest first."""
    request = ListCheckpointsRequest(job_id=job_id)
    found: list[Checkpoint] = []
    while True:
        page = client._connection.call(client._checkpoints.ListCheckpoints, request)
        found += map(Checkpoint.from_proto, page.checkpoints)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def download(client: Client, job_id: str, directory: Path, step: int | None, tell: Tell | None = None) -> Path:
    """Fetch all files of a checkpoint; see Job.download."""
    download = _Download(client, job_id, step, tell)
    with download.open(MODEL_FILE) as (file, chunks):
        assert download.checkpoint is not None
        target = directory / folder_of(download.checkpoint.step)
        if target.exists():
            raise FileExistsError(errno.EEXIST, "is there already; remove it or name another directory", str(target))
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = directory / f".{target.name}-{uuid.uuid4().hex[:8]}.unfinished"
        try:
            unfinished.mkdir()
            _write(unfinished, file, chunks)
            names = [file.name for file in download.checkpoint.files if file.name != MODEL_FILE]
            for name in dict.fromkeys([*names, MANIFEST_FILE]):
                with download.open(name) as (other, other_chunks):
                    _write(unfinished, other, other_chunks)
            unfinished.rename(target)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return target


def load_state_dict(client: Client, job_id: str, step: int | None) -> dict[str, Tensor]:
    """Fetch the weights of a checkpoint; see Job.load_state_dict."""
    missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"load_state_dict needs torch and safetensors; not installed: {', '.join(missing)}; "
            f"{how_to_install('workers')}"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="lockstep-") as directory:
        fetch(client, job_id, step, (MODEL_FILE,), Path(directory))
        try:
            return load_file(Path(directory, MODEL_FILE))
        except SafetensorError as error:
            raise DataLoss(f"{MODEL_FILE} of {job_id} is no safetensors file: {error}") from error


def fetch(client: Client, job_id: str, step: int | None, names: Sequence[str], folder: Path) -> None:
    """Fetch some files of one checkpoint into a folder.

    Raises:
        NotFound: there is no such checkpoint, or it has no such file.
        DataLoss: the bytes are not those that were written.
    """
    download = _Download(client, job_id, step)
    for name in names:
        with download.open(name) as (file, chunks):
            _write(folder, file, chunks)


class _Download:
    """Opens files of one checkpoint, and counts their bytes."""

    def __init__(self, client: Client, job_id: str, step: int | None, tell: Tell | None = None) -> None:
        self._client, self._job_id, self._step, self._tell = client, job_id, step, tell
        self.checkpoint: Checkpoint | None = None
        self._sizes: dict[str, int] = {}
        self._done_bytes = 0

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[CheckpointFile, Iterator[bytes]]]:
        """Yield what the server says of a file, and its bytes as they come.

        The first file settles the checkpoint: a job that runs may write a newer one before the next is opened.
        """
        request = DownloadCheckpointRequest(job_id=self._job_id, step=self._step, file_name=name)
        messages = self._client._connection.read(self._client._checkpoints.DownloadCheckpoint, request)
        try:
            header = self._header(next(messages, None), name)
            checkpoint, file = Checkpoint.from_proto(header.checkpoint), CheckpointFile.from_proto(header.file)
            if self.checkpoint is None:
                self.checkpoint, self._step = checkpoint, checkpoint.step
                self._sizes = {file.name: file.size_bytes for file in checkpoint.files}
            self._sizes[name] = file.size_bytes
            yield file, self._chunks(messages)
        finally:
            messages.close()

    def _header(self, message: DownloadCheckpointResponse | None, name: str) -> DownloadHeader:
        if message is None or not message.HasField("header") or message.header.file.name != name:
            raise DataLoss(f"the server at {self._client.target} did not say what it sends as {name}")
        return message.header

    def _chunks(self, messages: Iterator[DownloadCheckpointResponse]) -> Iterator[bytes]:
        for message in messages:
            self._done_bytes += len(message.chunk)
            if self._tell is not None:
                self._tell(self._done_bytes, sum(self._sizes.values()))
            yield message.chunk


def _write(folder: Path, file: CheckpointFile, chunks: Iterator[bytes]) -> None:
    """Write a file whose bytes must be those that its size and digest say.

    Raises:
        DataLoss: they are not.
    """
    if file.name in ("", "..") or Path(file.name).name != file.name:
        raise DataLoss(f"the server names a file {file.name!r}, which is no name of a file")
    digest, size_bytes = hashlib.sha256(), 0
    with (folder / file.name).open("xb") as output:
        for chunk in chunks:
            digest.update(chunk)
            size_bytes += len(chunk)
            if size_bytes > file.size_bytes:
                raise DataLoss(f"{file.name} came with more bytes than the {file.size_bytes} that it has")
            output.write(chunk)
    if size_bytes != file.size_bytes:
        raise DataLoss(f"{file.name} came with {size_bytes} bytes; it has {file.size_bytes}")
    if digest.hexdigest() != file.sha256:
        raise DataLoss(f"{file.name} came with other bytes than it has: their SHA-256 differs; download it again")
