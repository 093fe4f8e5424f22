"""What a job starts from when it starts from the weights of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.message import Message

from lockstep.contract.checkpoints import MANIFEST_FILE
from lockstep.contract.spec.values import show
from lockstep.server.errors import FilesHang, InvalidSpec, Violation
from lockstep.server.jobs.job import Job
from lockstep.server.jobs.records import StoredCheckpoint
from lockstep.server.process.file_pool import FilePool
from lockstep.server.process.foreign_files import link_file, local_path, make_folder, open_folder, remove_folder
from lockstep.server.store import JobStore, Store
from lockstep.v1.job_spec_pb2 import JobSpec

_MOST_SHOWN_STEPS = 10
_FOLDER = "init-from"
# Where there are no links, the weights of a large model are copied.
_KEEPING_S = 3600.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class FirstWeights:
    """Where they lie, their digest and the names of their files when those are known; all empty for fresh weights."""

    uri: str = ""
    digest: str = ""
    files: tuple[str, ...] = ()


async def find_first_weights(spec: JobSpec, store: Store) -> FirstWeights:
    """Look up what `init_from` means; a step that was left open is filled in.

    Args:
        spec: a resolved spec; it is changed.
        store: knows the jobs and their checkpoints.

    Raises:
        InvalidSpec: there is no such job or checkpoint, or it is of another model.
    """
    if not spec.init_from.job_id:
        return FirstWeights(spec.init_from.uri)
    checkpoint = await _find(spec, store)
    spec.init_from.step = checkpoint.step
    return FirstWeights(checkpoint.uri, checkpoint.weights_digest, tuple(file.name for file in checkpoint.files))


async def _find(spec: JobSpec, store: Store) -> StoredCheckpoint:
    job_id = spec.init_from.job_id
    source = await store.jobs.get_job(job_id)
    if source is None:
        raise _invalid(
            "init_from.job_id",
            f"init_from.job_id is {show(job_id)}, and there is no such job; give the whole id, as "
            "`lockstep ls` shows it: a name or the beginning of an id is not looked for here",
        )
    step = spec.init_from.step if spec.init_from.HasField("step") else None
    checkpoint = await store.checkpoints.get_checkpoint(job_id, step)
    if checkpoint is None:
        kept = await store.checkpoints.list_checkpoints(job_id, before=None, limit=_MOST_SHOWN_STEPS, make=list)
        raise _no_checkpoint(source, step, kept)
    differences = _differences_of_models(spec, source)
    if differences:
        raise InvalidSpec(differences)
    return checkpoint


def keep_first_weights(job: Job, files: Sequence[str]) -> Job:
    """Link the checkpoint that a new job starts from, since the job that wrote it may remove it; it blocks.

    The links lie in the new job's folder beside the folder of the other job. What does not lie on a disk that this
    server sees stays where it is.

    Args:
        job: the new one.
        files: names of the checkpoint's files. Nothing else that lies there is taken along.

    Raises:
        InvalidSpec: it was removed since it was looked up.
    """
    path = local_path(job.init_from_uri)
    if not job.spec.init_from.job_id or path is None or not Path(path).parent.exists():
        return job
    source = Path(path)
    root, names = source.parent.parent, (job.job_id, _FOLDER, source.name)
    try:
        make_folder(root, *names)
        with open_folder(root, source.parent.name, source.name) as theirs, open_folder(root, *names) as ours:
            for name in dict.fromkeys([*files, MANIFEST_FILE]):
                link_file(theirs, ours, name)
    except OSError as error:
        remove_folder(root, job.job_id, _FOLDER)
        raise _invalid(
            "init_from.job_id",
            f"the checkpoint of step {job.spec.init_from.step} of {job.spec.init_from.job_id} cannot be kept for "
            f"this job ({(error.strerror or str(error)).lower()}): that job may be removing it, or the disk is full; "
            "submit again, for the newest without a step",
        ) from error
    return replace(job, init_from_uri=str(root.joinpath(*names)))


def forget_first_weights(job_id: str, init_from_uri: str) -> None:
    """Remove what `keep_first_weights` has linked for a job that has ended or did not come to be; it blocks."""
    kept = Path(init_from_uri).parent
    if kept.name == _FOLDER and kept.parent.name == job_id:
        remove_folder(kept.parent.parent, job_id, _FOLDER)


async def keep_beside(job: Job, names: Sequence[str], files: FilePool) -> Job:
    """Do `keep_first_weights` in a thread; nothing is kept when there are no names of files."""
    if not names:
        return job
    what = f"keeping the weights that {job.job_id} starts from"

    def drop(kept: Job) -> None:
        forget_first_weights(kept.job_id, kept.init_from_uri)

    return await files.run(keep_first_weights, job, names, what=what, drop=drop, deadline_s=_KEEPING_S)


async def forget_beside(job: Job, files: FilePool) -> None:
    """Do `forget_first_weights` in a thread."""
    what = f"removing the weights that {job.job_id} started from"
    await files.run(forget_first_weights, job.job_id, job.init_from_uri, what=what)


async def forget_what_is_over(stored: JobStore, files: FilePool, checkpoint_root: str) -> None:
    """Remove what servers before have kept for jobs that ended while none ran, or that were never stored.

    What was kept for a job that was never stored is looked for under this server's own root only: in another folder it
    may be another server's. What cannot be removed now is left for the next start.

    Args:
        stored: knows the jobs; none is submitted meanwhile.
        files: its threads do it.
        checkpoint_root: where jobs keep their checkpoints that do not say where; an absolute path.
    """
    what = "removing what was kept for jobs that are over"
    root = Path(checkpoint_root)
    try:
        for job_id, init_from_uri in await stored.first_weights_of_ended():
            await files.run(forget_first_weights, job_id, init_from_uri, what=what)
        for kept in await files.run(lambda: list(root.glob(f"*/{_FOLDER}")), what=what):
            if await stored.get_job(kept.parent.name) is None:
                await files.run(remove_folder, root, kept.parent.name, _FOLDER, what=what)
    except FilesHang as error:
        log.warning("not all was removed that was kept for jobs that are over", why=error.message)


def _no_checkpoint(source: Job, step: int | None, kept: list[StoredCheckpoint]) -> InvalidSpec:
    job_id = source.job_id
    if not kept:
        hint = "wait until it has written one"
        if source.state.has_ended:
            hint = f"it has ended as {source.state.value} and will write none; name another job"
        return _invalid("init_from.job_id", f"init_from.job_id is {show(job_id)}, which has no checkpoint; {hint}")
    steps = ", ".join(str(checkpoint.step) for checkpoint in kept)
    return _invalid(
        "init_from.step",
        f"init_from.step is {step}, and {job_id} keeps no checkpoint of it; allowed: {steps}; "
        "leave it out for the newest",
    )


def _differences_of_models(spec: JobSpec, source: Job) -> list[Violation]:
    kind, kind_there = spec.model.WhichOneof("kind"), source.spec.model.WhichOneof("kind")
    if kind != kind_there:
        return [
            Violation(
                "model",
                f"model is {kind}, and the checkpoint of {source.job_id} is of {kind_there}; "
                "init_from takes the weights of the same model",
            )
        ]
    assert kind is not None
    here: Message = getattr(spec.model, kind)
    there: Message = getattr(source.spec.model, kind)
    return [
        Violation(
            f"model.{kind}.{field.name}",
            f"model.{kind}.{field.name} is {_shown(getattr(here, field.name))}, and "
            f"{_shown(getattr(there, field.name))} in {source.job_id}; "
            "init_from takes the weights of the same model",
        )
        for field in here.DESCRIPTOR.fields
        if getattr(here, field.name) != getattr(there, field.name)
    ]


def _shown(value: Any) -> str:
    return show(value) if isinstance(value, (str, int, float)) else f"[{', '.join(show(item) for item in value)}]"


def _invalid(field: str, message: str) -> InvalidSpec:
    return InvalidSpec([Violation(field, message)])
