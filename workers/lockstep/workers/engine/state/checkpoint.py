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
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lockstep.contract.bounds import MOST_MANIFEST_BYTES
from lockstep.contract.checkpoints import (
    MANIFEST_FILE,
    MODEL_FILE,
    TRAINING_FILE,
    Manifest,
    ManifestFile,
    folder_of,
)
from lockstep.workers.engine.state import manifest as manifests
from lockstep.workers.engine.state.digest import digest_of
from lockstep.workers.engine.state.manifest import Damaged
from lockstep.workers.engine.state.state import TrainState, safetensors_of
from lockstep.workers.engine.state.storage import Local, NotOurs, Storage, storage_of

BITS_DEPEND_ON = {
    "hardware_class": "with {}",
    "engine_version": "with engine version {}",
    "data_digest": "with data of the SHA-256 {}",
}
"""Facts of a manifest on which bits depend, and how to say them; manifests of earlier times lack some."""
BELONGS_BY = {"job_id": "job {}", "curve_digest": "a job with the curve digest {}"}
"""Facts that say whose a checkpoint is; manifests of earlier times lack some."""
FOLDER = re.compile(r"step-(\d{12})")
UNFINISHED, REMOVED = "unfinished-", "removed-"
SPARE_BYTES = 1 << 20
"""By so much a file that is too long is read, to say how long it is."""

__all__ = ["Checkpoint", "Checkpoints", "Damaged", "File", "Foreign", "NotOurs", "read_weights"]


class Foreign(Damaged):
    """A checkpoint is another job's."""


@dataclass(frozen=True)
class File:
    """One file of a checkpoint: its name, its size in bytes, and the SHA-256 of its bytes, hex."""

    name: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, content: bytes) -> "File":
        return cls(name, len(content), hashlib.sha256(content).hexdigest())

    def as_manifest(self) -> ManifestFile:
        """Say it as the manifest does."""
        return ManifestFile(name=self.name, size_bytes=self.size_bytes, sha256=self.sha256)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole.

    Attributes:
        step: steps done.
        uri: its folder.
        create_time: when it was written, in seconds since 1970.
        weights_digest: digest of the model's state.
        files: its files, the manifest last.
    """

    step: int
    uri: str
    create_time: float
    weights_digest: str
    files: tuple[File, ...]


class Checkpoints:
    """The checkpoints of one job. What another job has written is neither used nor removed.

    Args:
        uri: their folder, a path or what fsspec knows.
        keep: how many of the newest stay.
        facts: what the manifest says beside the state: the job, and that on which its bits depend.
        spec: the resolved spec, as JSON has it; for whoever loads the model later.

    Attributes:
        facts: the same; whoever trains adds to them.
        preprocessing: what was done to raw examples, as `DataModule.preprocessing` says; whoever trains sets it.
        examples: what they then look like to the model, as `DataModule.described` says; whoever trains sets it.
    """

    def __init__(
        self, uri: str, keep: int = 2, facts: dict[str, Any] | None = None, spec: dict[str, Any] | None = None
    ) -> None:
        self._place: Storage = storage_of(uri)
        self._keep, self.facts = keep, dict(facts or {})
        self._spec = dict(spec or {})
        self.preprocessing: dict[str, Any] = {}
        self.examples: dict[str, Any] = {}
        self._known: dict[int, Checkpoint] = {}
        self._found: frozenset[int] = frozenset()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have a manifest, newest first, whoever wrote them.

        Raises:
            NotOurs: the folder is not to be used.
            OSError: the folder cannot be looked at.
        """
        matches = [match for name in self._place.names() if (match := FOLDER.fullmatch(name))]
        whole = [int(match.group(1)) for match in matches if self._place.has(match.group(), MANIFEST_FILE)]
        return sorted(whole, reverse=True)

    def take_over(self) -> None:
        """Be the one that writes here from now on: note what there is, and clean up after writers that died.

        One that lives and was only cut off fails to write what it has begun, and harms nothing.

        Raises:
            NotOurs: the folder is not to be used.
            OSError: the folder cannot be looked at.
        """
        self._found = frozenset(self.steps())
        if isinstance(self._place, Local):
            for name in self._place.names():
                if name.startswith(UNFINISHED):
                    with contextlib.suppress(FileNotFoundError):  # renamed first, so that a half cannot be put in place
                        self._place.rename(name, REMOVED + secrets.token_hex(8))
            for name in self._place.names():
                if name.startswith(REMOVED):
                    self._place.remove(name)

    def kept(self) -> list[Checkpoint]:
        """All checkpoints of this job, newest first, whichever process wrote them; but for those that are damaged.

        Raises:
            NotOurs: the folder is not to be used.
            OSError: they cannot be looked at.
        """
        steps = self.steps()
        self._known = {step: self._known[step] for step in steps if step in self._known}
        for step in steps:
            if step not in self._known:
                with contextlib.suppress(Damaged):
                    content = self._manifest_bytes(step)
                    self._known[step] = self._describe(step, self._ours(manifests.decode(content)), content)
        return [self._known[step] for step in steps if step in self._known]

    def write(self, state: TrainState) -> None:
        """Write a state; an earlier checkpoint of the same step is replaced.

        Raises:
            NotOurs: the folder, or what is there of this step, is not this job's.
            OSError: it cannot be written; nothing of it stays behind.
        """
        folder = target = folder_of(state.step)
        self._known.pop(state.step, None)
        if self._is_foreign(state.step):
            raise NotOurs(f"{self._place.uri(folder)} is another job's checkpoint; move it away")
        if self._place.is_local:
            target = f"{UNFINISHED}{folder}-{secrets.token_hex(8)}"
        weights_digest = digest_of(state.model)
        try:
            if not self._place.is_local:
                self._place.remove(target)
            self._place.create(target)
            files = (
                self._write(target, MODEL_FILE, safetensors_of(state.model)),
                self._write(target, TRAINING_FILE, safetensors_of(state.training)),
            )
            manifest: Manifest = {
                "step": state.step,
                "create_time": time.time(),
                "weights_digest": weights_digest,
                "files": [file.as_manifest() for file in files],
                "facts": self.facts,
                "spec": self._spec,
                "preprocessing": self.preprocessing,
                "examples": self.examples,
                "notes": state.notes,
            }
            content = manifests.encode(manifest)
            self._write(target, MANIFEST_FILE, iter([memoryview(content)]))
            if self._place.is_local:
                self._place.put_in_place(target, folder)
        except BaseException:
            self._place.remove(target)
            raise
        self._known[state.step] = self._describe(state.step, manifest, content)

    def read(self, step: int) -> TrainState:
        """Read a checkpoint back, checking every byte.

        Raises:
            Damaged: it is not what was written.
            Foreign: it is another job's.
            OSError: it cannot be read.
        """
        manifest = self._ours(manifests.decode(self._manifest_bytes(step)))
        with _understood():
            contents = [_checked(self._place, folder_of(step), manifest, name) for name in (MODEL_FILE, TRAINING_FILE)]
            return TrainState(int(manifest["step"]), load(contents[0]), load(contents[1]), manifest["notes"])

    def facts_of(self, step: int) -> dict[str, Any]:
        """The facts of a checkpoint; those of earlier times lack some.

        Raises:
            Damaged: its manifest is not what was written.
            OSError: it cannot be read.
        """
        return manifests.decode(self._manifest_bytes(step)).get("facts") or {}

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
        """Remove all of this job but the newest.

        Args:
            written: step of the one that was just written. Those of later steps that were there at `take_over` could
                not be used, or training would not be here again; they go too.
        """
        steps = [step for step in self.steps() if not self._is_foreign(step)]
        past = [step for step in steps if step <= written]
        gone = past[self._keep :] + [step for step in steps if step > written and step in self._found]
        for step in gone:
            # Without its manifest a folder is no checkpoint, however far its removal gets.
            self._place.remove_file(folder_of(step), MANIFEST_FILE)
            self._place.remove(folder_of(step))

    def _ours(self, manifest: Manifest) -> Manifest:
        """A manifest, if it is not another job's."""
        theirs = manifest.get("facts") or {}
        for name, words in BELONGS_BY.items():
            if name in theirs and name in self.facts and theirs[name] != self.facts[name]:
                whose = f"{words.format(theirs[name])}, and this is {words.format(self.facts[name])}"
                raise Foreign(f"it was written by {whose}; it is left as it is")
        return manifest

    def _is_foreign(self, step: int) -> bool:
        """Whether a checkpoint says that it is another job's; one that cannot be read says nothing."""
        try:
            if step not in self._known:
                self._ours(manifests.decode(self._manifest_bytes(step)))
        except Foreign:
            return True
        except (Damaged, OSError):
            return False
        return False

    def _manifest_bytes(self, step: int) -> bytes:
        return _manifest_bytes(self._place, folder_of(step))

    def _describe(self, step: int, manifest: Manifest, content: bytes) -> Checkpoint:
        with _understood():
            files = (*(File(**file) for file in manifest["files"]), File.of(MANIFEST_FILE, content))
            created, digest = float(manifest["create_time"]), str(manifest["weights_digest"])
            return Checkpoint(step, self._place.uri(folder_of(step)), created, digest, files)

    def _write(self, folder: str, name: str, parts: Iterator[memoryview]) -> File:
        digest, size = hashlib.sha256(), 0

        def counted() -> Iterator[memoryview]:
            nonlocal size
            for part in parts:
                digest.update(part)
                size += len(part)
                yield part

        self._place.write(folder, name, counted())
        return File(name, size, digest.hexdigest())


def read_weights(uri: str, most_bytes: int) -> dict[str, Tensor]:
    """Read the weights of the checkpoint in the folder `uri`, checking every byte of them.

    Args:
        uri: a path or what fsspec knows.
        most_bytes: that they may take.

    Raises:
        Damaged: it is not what was written.
        OSError: it cannot be read.
    """
    parent, _, folder = uri.rstrip("/").rpartition("/")
    place = storage_of(parent or "/", is_owned=True)
    manifest = manifests.decode(_manifest_bytes(place, folder))
    with _understood():
        weights: dict[str, Tensor] = load(_checked(place, folder, manifest, MODEL_FILE, most_bytes))
        return weights


def _manifest_bytes(place: Storage, folder: str) -> bytes:
    try:
        return place.read(folder, MANIFEST_FILE, MOST_MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise Damaged(f"{MANIFEST_FILE} is missing") from error


def _checked(place: Storage, folder: str, manifest: Manifest, name: str, most_bytes: int | None = None) -> bytes:
    listed = {file["name"]: File(**file) for file in manifest["files"]}[name]
    if most_bytes is not None and listed.size_bytes > most_bytes:
        raise Damaged(f"{name} has {listed.size_bytes:,} bytes; the model takes at most {most_bytes:,}")
    try:
        content = place.read(folder, name, listed.size_bytes + SPARE_BYTES)
    except FileNotFoundError as error:
        raise Damaged(f"{name} is missing") from error
    if len(content) != listed.size_bytes:
        raise Damaged(f"{name} has {len(content)} bytes, not {listed.size_bytes}")
    if hashlib.sha256(content).hexdigest() != listed.sha256:
        raise Damaged(f"the bytes of {name} have changed")
    return content


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """Turn what goes wrong in a manifest or a file whose form is not ours into Damaged."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{MANIFEST_FILE} cannot be understood") from error
    except SafetensorError as error:
        raise Damaged(f"a file cannot be understood: {error}") from error
