"""What went wrong in another process, in the words of the contract; light, for the launcher needs it."""

import traceback
from pathlib import Path

import ray.exceptions

from lockstep.contract.failures import FailureReason
from lockstep.v1.job_pb2 import JobError

FRAMES_SHOWN = 12
MESSAGE_LIMIT = 2_000
TRACEBACK_LIMIT = 8_000


def error_of_call(error: BaseException, rank: int) -> JobError:
    """The error of a job that has asked something of the worker of rank `rank`, and got `error`."""
    match error:
        case ray.exceptions.RayTaskError():
            return error_raised(error, rank)
        case ray.exceptions.OutOfMemoryError():
            message = f"worker {rank} was killed: {in_our_words(error)}"
            return JobError(reason=FailureReason.WORKER_LOST, message=message, rank=rank)
        case ray.exceptions.RayError():
            message = f"worker {rank} died: {in_our_words(error)}"
            return JobError(reason=FailureReason.WORKER_LOST, message=message, rank=rank)
        case _:
            return error_raised(error, rank)


def error_raised(error: BaseException, rank: int) -> JobError:
    """The error of a job whose code has raised `error`, of which nothing else is known."""
    message = f"worker {rank} raised {type(error).__name__}: {str(error)[:MESSAGE_LIMIT]}"
    return JobError(reason=FailureReason.USER_ERROR, message=message, traceback=short_traceback(error), rank=rank)


def is_with_node(error: BaseException) -> bool:
    """Whether a node is gone, and all that was there with it."""
    match error:
        case (
            ray.exceptions.NodeDiedError()
            | ray.exceptions.ActorUnschedulableError()
            | ray.exceptions.TaskUnschedulableError()
        ):
            return True
        case ray.exceptions.RayActorError():
            return "node has died" in str(error)
        case _:
            return False


def in_our_words(error: BaseException) -> str:
    """What has become of a process of Ray's, in one line; Ray's own words are paragraphs on Ray."""
    match error:
        case _ if is_with_node(error):
            return "its node is gone"
        case ray.exceptions.OutOfMemoryError():
            return "its node ran out of memory"
        case ray.exceptions.RayTaskError():
            return f"it raised {_first_line(f'{type(error.cause).__name__}: {error.cause}')}"
        case ray.exceptions.RayActorError() if "creation task" in str(error):  # the last line names the error itself
            return f"it could not be made: {str(error).rstrip().rpartition(chr(10))[2][:MESSAGE_LIMIT]}"
        case ray.exceptions.ActorUnavailableError() | ray.exceptions.GetTimeoutError():
            return "it cannot be reached"
        case ray.exceptions.RayActorError() | ray.exceptions.WorkerCrashedError():
            return "its process was killed or crashed"
        case ray.exceptions.RayError():
            return f"Ray lost it ({type(error).__name__})"
        case _:
            return _first_line(f"{type(error).__name__}: {error}")


def _first_line(words: str) -> str:
    return words.strip().partition("\n")[0][:MESSAGE_LIMIT]


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
