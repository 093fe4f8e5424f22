"""Checkpoints: the state of training in a folder of safetensors files, which is whole or not there.

    <root>/step-000000000200/model.safetensors       the weights, under the names of the model's state_dict
                             training.safetensors    optimizer and what else training needs
                             manifest.json           step, notes, and size and SHA-256 of the others; written last

On a local disk the folder is written under another name, flushed and renamed. The name is random: a writer that is cut
off may go on while another has taken over, and neither must touch what the other has begun. Elsewhere, as on S3, the
manifest is what makes it whole.
"""

import contextlib
import hashlib
import json
import os
import posixpath
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors.torch import load

from lockstep.workers.engine.digest import digest_of
from lockstep.workers.engine.state import TrainState, safetensors_of

FORMAT = 1
BITS_DEPEND_ON = {
    "hardware_class": "with {}",
    "engine_version": "with engine version {}",
    "data_digest": "with data of the SHA-256 {}",
}
"""Facts of a manifest on which bits depend, and how to say them; manifests of earlier times lack some."""
MODEL_FILE, TRAINING_FILE, MANIFEST_FILE = "model.safetensors", "training.safetensors", "manifest.json"
FOLDER = re.compile(r"step-(\d{12})")
UNFINISHED, REMOVED = "unfinished-", "removed-"


class Damaged(Exception):
    """A checkpoint is not what was written; says what is wrong with which file."""


@dataclass(frozen=True)
class File:
    """One file of a checkpoint: its name, its size in bytes, and the SHA-256 of its bytes, hex."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole.

    Attributes:
        step: steps done.
        uri: its folder.
        create_time: when it was written, in seconds since 1970.
        weights_digest: digest of the model's state.
        files: its files but for the manifest.
    """

    step: int
    uri: str
    create_time: float
    weights_digest: str
    files: tuple[File, ...]


class Checkpoints:
    """The checkpoints of one job.

    Args:
        uri: their folder, a path or what fsspec knows.
        keep: how many of the newest stay.
        facts: what the manifest says beside the state: the job, and that on which its bits depend.

    Attributes:
        facts: the same; whoever trains adds to them.
    """

    def __init__(self, uri: str, keep: int = 2, facts: dict[str, Any] | None = None) -> None:
        self._files, self._root = fsspec.core.url_to_fs(uri)
        self._is_local = isinstance(self._files, LocalFileSystem)
        self._keep, self.facts = keep, dict(facts or {})
        self._known: dict[int, Checkpoint] = {}
        self._found: frozenset[int] = frozenset()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have a manifest, newest first.

        Raises:
            OSError: the folder cannot be looked at.
        """
        self._files.invalidate_cache()
        matches = [match for name in self._names() if (match := FOLDER.fullmatch(name))]
        whole = [
            int(match.group(1))
            for match in matches
            if self._files.exists(posixpath.join(self._root, match.group(), MANIFEST_FILE))
        ]
        return sorted(whole, reverse=True)

    def take_over(self) -> None:
        """Be the one that writes here from now on: note what there is, and clean up after writers that died.

        One that lives and was only cut off fails to write what it has begun, and harms nothing.

        Raises:
            OSError: the folder cannot be looked at.
        """
        self._found = frozenset(self.steps())
        if self._is_local:
            for name in self._names():
                if name.startswith(UNFINISHED):
                    with contextlib.suppress(FileNotFoundError):  # renamed first, so that a half cannot be put in place
                        path = Path(self._root, name)
                        path.rename(path.with_name(REMOVED + secrets.token_hex(8)))
            for name in self._names():
                if name.startswith(REMOVED):
                    self._remove(posixpath.join(self._root, name))

    def kept(self) -> list[Checkpoint]:
        """All checkpoints that are there, newest first, whoever wrote them; but for those with a damaged manifest.

        Raises:
            OSError: they cannot be looked at.
        """
        steps = self.steps()
        self._known = {step: self._known[step] for step in steps if step in self._known}
        for step in steps:
            if step not in self._known:
                with contextlib.suppress(Damaged):
                    self._known[step] = self._describe(step, _manifest(self._files, self._folder(step)))
        return [self._known[step] for step in steps if step in self._known]

    def write(self, state: TrainState) -> None:
        """Write a state; an earlier checkpoint of the same step is replaced.

        Raises:
            OSError: it cannot be written; nothing of it stays behind.
        """
        folder = self._folder(state.step)
        target = folder
        if self._is_local:
            target = posixpath.join(self._root, f"{UNFINISHED}{posixpath.basename(folder)}-{secrets.token_hex(8)}")
        weights_digest = digest_of(state.model)
        self._known.pop(state.step, None)
        try:
            self._remove(target)
            self._files.makedirs(target, exist_ok=True)
            files = (
                self._write(posixpath.join(target, MODEL_FILE), safetensors_of(state.model)),
                self._write(posixpath.join(target, TRAINING_FILE), safetensors_of(state.training)),
            )
            manifest = {
                "format": FORMAT,
                "step": state.step,
                "create_time": time.time(),
                "weights_digest": weights_digest,
                "files": [vars(file) for file in files],
                "facts": self.facts,
                "notes": state.notes,
            }
            content = memoryview(json.dumps(manifest, indent=1).encode())
            self._write(posixpath.join(target, MANIFEST_FILE), iter([content]))
            if self._is_local:
                self._put_in_place(target, folder)
        except BaseException:
            self._remove(target)
            raise

    def read(self, step: int) -> TrainState:
        """Read a checkpoint back, checking every byte.

        Raises:
            Damaged: it is not what was written.
            OSError: it cannot be read.
        """
        return read_checkpoint(self._files, self._folder(step))

    def facts_of(self, step: int) -> dict[str, Any]:
        """The facts of a checkpoint; those of earlier times lack some.

        Raises:
            Damaged: its manifest is not what was written.
            OSError: it cannot be read.
        """
        return _manifest(self._files, self._folder(step)).get("facts") or {}

    def differences(self, step: int) -> list[str]:
        """In words, what the bits of a checkpoint depended on and ours do not; nothing is said of what is not known.

        Raises:
            Damaged: its manifest is not what was written.
            OSError: it cannot be read.
        """
        theirs = self.facts_of(step)
        return [
            f"the checkpoint of step {step} was written {words.format(theirs[name])}, and training goes on "
            f"{words.format(self.facts[name])}: its bits could differ from those of an undisturbed run"
            for name, words in BITS_DEPEND_ON.items()
            if name in theirs and name in self.facts and theirs[name] != self.facts[name]
        ]

    def prune(self, written: int) -> None:
        """Remove all but the newest.

        Args:
            written: step of the one that was just written. Those of later steps that were there at `take_over` could
                not be used, or training would not be here again; they go too.
        """
        steps = self.steps()
        past = [step for step in steps if step <= written]
        gone = past[self._keep :] + [step for step in steps if step > written and step in self._found]
        for step in gone:
            # Without its manifest a folder is no checkpoint, however far its removal gets.
            self._files.rm_file(posixpath.join(self._folder(step), MANIFEST_FILE))
            self._remove(self._folder(step))

    def _names(self) -> list[str]:
        """Names of what is in the folder; not by a pattern, in which a bracket of the folder's own name would count."""
        try:
            return [posixpath.basename(str(path).rstrip("/")) for path in self._files.ls(self._root, detail=False)]
        except (FileNotFoundError, NotADirectoryError):  # nothing was ever written there
            return []

    def _folder(self, step: int) -> str:
        return posixpath.join(self._root, f"step-{step:012d}")

    def _describe(self, step: int, manifest: dict[str, Any]) -> Checkpoint:
        uri = self._files.unstrip_protocol(self._folder(step))
        try:
            files = tuple(File(**file) for file in manifest["files"])
            return Checkpoint(step, uri, float(manifest["create_time"]), str(manifest["weights_digest"]), files)
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{MANIFEST_FILE} cannot be understood") from error

    def _write(self, path: str, parts: Iterator[memoryview]) -> File:
        digest, size = hashlib.sha256(), 0
        with self._files.open(path, "wb") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
                size += len(part)
            if self._is_local:
                file.flush()
                os.fsync(file.fileno())
        return File(posixpath.basename(path), size, digest.hexdigest())

    def _put_in_place(self, source: str, folder: str) -> None:
        _flush_folder(source)
        self._remove(folder)
        Path(source).rename(folder)
        _flush_folder(self._root)

    def _remove(self, folder: str) -> None:
        if self._is_local:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for path in self._files.find(folder):  # the file system's own removal takes a path for a pattern
            self._files.rm_file(path)
        with contextlib.suppress(OSError):  # where a folder is but a part of names, there is none any more
            self._files.rmdir(folder)


def read_checkpoint(files: fsspec.AbstractFileSystem, folder: str) -> TrainState:
    """Read a folder, checking every byte; see `Checkpoints.read`."""
    try:
        manifest = _manifest(files, folder)
        listed = {file["name"]: file for file in manifest["files"]}
        contents = {name: _checked(files, folder, listed[name]) for name in (MODEL_FILE, TRAINING_FILE)}
        return TrainState(
            int(manifest["step"]), load(contents[MODEL_FILE]), load(contents[TRAINING_FILE]), manifest["notes"]
        )
    except FileNotFoundError as error:
        raise Damaged(f"{posixpath.basename(str(error.filename or error))} is missing") from error
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{MANIFEST_FILE} cannot be understood") from error
    except SafetensorError as error:
        raise Damaged(f"a file cannot be understood: {error}") from error


def _manifest(files: fsspec.AbstractFileSystem, folder: str) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(files.cat_file(posixpath.join(folder, MANIFEST_FILE)))
    except FileNotFoundError as error:
        raise Damaged(f"{MANIFEST_FILE} is missing") from error
    except ValueError as error:
        raise Damaged(f"{MANIFEST_FILE} cannot be understood") from error
    return manifest


def read_uri(uri: str) -> TrainState:
    """Read the checkpoint in the folder `uri`.

    Raises:
        Damaged: it is not what was written.
        OSError: it cannot be read.
    """
    return read_checkpoint(*fsspec.core.url_to_fs(uri))


def _checked(files: fsspec.AbstractFileSystem, folder: str, listed: dict[str, Any]) -> bytes:
    content: bytes = files.cat_file(posixpath.join(folder, listed["name"]))
    if len(content) != listed["size_bytes"]:
        raise Damaged(f"{listed['name']} has {len(content)} bytes, not {listed['size_bytes']}")
    if hashlib.sha256(content).hexdigest() != listed["sha256"]:
        raise Damaged(f"the bytes of {listed['name']} have changed")
    return content


def _flush_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
