"""What went wrong in a worker, in the words of the contract."""

import traceback
from pathlib import Path

import ray.exceptions

from lockstep.v1.job_pb2 import JobError
from lockstep.workers.engine import (
    DataError,
    HardwareDiffers,
    ModelError,
    NonFiniteGradient,
    NonFiniteLoss,
    NonFiniteParameters,
    NotDeterministic,
    PeerLost,
    RanksDisagree,
)

FRAMES_SHOWN = 12
MESSAGE_LIMIT = 2_000
TRACEBACK_LIMIT = 8_000


def job_error(error: BaseException, rank: int) -> JobError:
    """The error of a job that rank `rank` could not go on with."""
    match error:
        case DataError():
            return JobError(reason="DATA_INVALID", message=str(error), field=error.field, rank=rank)
        case NonFiniteLoss() | NonFiniteGradient() | NonFiniteParameters():
            return JobError(reason="NON_FINITE_LOSS", message=str(error), rank=rank)
        case NotDeterministic():
            return JobError(reason="NOT_DETERMINISTIC", message=str(error), rank=rank)
        case PeerLost():
            return JobError(reason="WORKER_LOST", message=str(error), rank=rank)
        case HardwareDiffers():
            mend = "equal bits need nodes of one class; take the others out of the cluster, or set fewer workers"
            return JobError(reason="RANKS_DISAGREE", message=f"{error}; {mend}", rank=rank)
        case RanksDisagree():
            message = f"{error}. The promise of equal bits is broken, so the job was stopped; please report this."
            return JobError(reason="RANKS_DISAGREE", message=message, rank=rank)
        case ModelError():
            cause = error.__cause__ or error
            return JobError(reason="USER_ERROR", message=str(error), traceback=short_traceback(cause), rank=rank)
        case ray.exceptions.OutOfMemoryError():
            return JobError(
                reason="WORKER_LOST", message=f"worker {rank} was killed: its node ran out of memory", rank=rank
            )
        case ray.exceptions.RayActorError():
            return JobError(
                reason="WORKER_LOST", message=f"worker {rank} died: its process was killed or crashed", rank=rank
            )
        case _:
            message = f"worker {rank} raised {type(error).__name__}: {str(error)[:MESSAGE_LIMIT]}"
            return JobError(reason="USER_ERROR", message=message, traceback=short_traceback(error), rank=rank)


def first_cause(errors: list[JobError]) -> JobError:
    """The error that the others follow from: what a worker did itself, before a death, before a lost peer."""

    def distance(error: JobError) -> int:
        if error.reason != "WORKER_LOST":
            return 0
        return 1 if " died: " in error.message or " was killed: " in error.message else 2

    return min(errors, key=distance)


def short_traceback(error: BaseException) -> str:
    """The last frames of a traceback, with paths cut down to what tells the file."""
    lines = []
    for frame in traceback.extract_tb(error.__traceback__)[-FRAMES_SHOWN:]:
        lines.append(f'  File "{_short_path(frame.filename)}", line {frame.lineno}, in {frame.name}')
        if frame.line:
            lines.append(f"    {frame.line}")
    words = "".join(traceback.format_exception_only(error)).rstrip()
    return "\n".join(["Traceback (most recent call last):", *lines, words])[-TRACEBACK_LIMIT:]


def _short_path(filename: str) -> str:
    parts = Path(filename).parts
    for marker in ("site-packages", "lockstep"):
        if marker in parts:
            start = len(parts) - parts[::-1].index(marker)
            return str(Path(*parts[start if marker == "site-packages" else start - 1 :]))
    return filename
