"""What can go wrong, as exceptions.

    LockstepError
    ├── InvalidRequest           the server refuses an argument; `violations` names each field at fault
    │   └── InvalidSpec          a spec that cannot be read, or that the server refuses
    ├── NotFound                 there is no such job
    ├── AlreadyExists            the request_id was used with another spec
    ├── FailedPrecondition       not possible as things stand: the job has ended, the cluster is too small
    ├── OutOfRange               a position past the end
    ├── Unauthenticated          the server asks for a token
    ├── PermissionDenied         this token may not do that
    ├── ResourceExhausted        a quota is used up, or a message is too large
    ├── Unavailable              no server answers
    ├── DeadlineExceeded         no answer in time
    │   └── WaitTimeout          a job has not ended in the time that wait() was given; also a TimeoutError
    ├── CallCancelled            the call was cancelled
    ├── Aborted                  the call lost against another one; try again
    ├── Unimplemented            the server does not know this call: it is older than the client, or no Lockstep
    ├── ServerFault              an error inside the server
    ├── DataLoss                 the bytes of a checkpoint are not those that were written
    ├── MissingPackage           a Python package that this needs is not installed; also an ImportError
    └── JobEnded                 the job came to a bad end; `job` is the job
        ├── JobFailed
        └── JobCancelled

Every message can be shown to a user as it stands. `code` is the gRPC status and `reason` the server's stable word for
the error; both are empty when the error did not come from a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

if TYPE_CHECKING:
    from lockstep.client.job import Job

_CLOSED_HERE = "Channel closed!"
_DETAILS_KEY = "grpc-status-details-bin"


class Violation(NamedTuple):
    """A field at fault and what is wrong with it."""

    field: str
    description: str

    def __str__(self) -> str:
        names_itself = self.description.startswith(self.field)  # also when there is no field
        return self.description if names_itself else f"{self.field}: {self.description}"


class LockstepError(Exception):
    """The base of all errors of this package."""

    def __init__(self, message: str, *, code: StatusCode | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class InvalidRequest(LockstepError):
    """An argument is at fault; `violations` says which and why, all at once."""

    _what = "the request"

    def __init__(
        self,
        violations: Sequence[Violation] | str,
        *,
        code: StatusCode | None = None,
        reason: str = "",
    ) -> None:
        if isinstance(violations, str):
            violations = [Violation("", violations)]
        self.violations = [Violation(*violation) for violation in violations]
        super().__init__(self._describe(), code=code, reason=reason)

    def _describe(self) -> str:
        if len(self.violations) == 1:
            return str(self.violations[0])
        lines = "".join(f"\n  {violation}" for violation in self.violations)
        return f"{self._what} has {len(self.violations)} errors:{lines}"


class InvalidSpec(InvalidRequest):
    """The spec is at fault."""

    _what = "the spec"


class NotFound(LockstepError):
    """There is no such job."""


class AlreadyExists(LockstepError):
    """The request_id was used with another spec."""


class FailedPrecondition(LockstepError):
    """Not possible as things stand."""


class OutOfRange(LockstepError):
    """A position past the end."""


class Unauthenticated(LockstepError):
    """The server asks for a token, or does not know this one."""


class PermissionDenied(LockstepError):
    """The token does not allow that."""


class ResourceExhausted(LockstepError):
    """A quota is used up, or a message is too large."""


class Unavailable(LockstepError):
    """No server answers."""


class DeadlineExceeded(LockstepError):
    """No answer in time."""


class WaitTimeout(DeadlineExceeded, TimeoutError):
    """A job has not ended in the time that wait() was given. The job goes on, or is still paused."""


class CallCancelled(LockstepError):
    """The call was cancelled."""


class Aborted(LockstepError):
    """The call lost against another one; try again."""


class Unimplemented(LockstepError):
    """The server does not know this call."""


class ServerFault(LockstepError):
    """An error inside the server."""


class DataLoss(LockstepError):
    """The bytes of a checkpoint are not those that were written: on the server's side, or on the way here."""


class MissingPackage(LockstepError, ImportError):
    """A Python package that this needs is not installed; the message says how to install it."""


class JobEnded(LockstepError):
    """The job came to a bad end."""

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message, reason=job.error.reason if job.error else "")
        self.job = job


class JobFailed(JobEnded):
    """The job failed; `job.error` says why."""


class JobCancelled(JobEnded):
    """The job was cancelled."""


EXCEPTION_BY_STATUS: dict[StatusCode, type[LockstepError]] = {
    StatusCode.CANCELLED: CallCancelled,
    StatusCode.UNKNOWN: ServerFault,
    StatusCode.INVALID_ARGUMENT: InvalidRequest,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    StatusCode.NOT_FOUND: NotFound,
    StatusCode.ALREADY_EXISTS: AlreadyExists,
    StatusCode.PERMISSION_DENIED: PermissionDenied,
    StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    StatusCode.ABORTED: Aborted,
    StatusCode.OUT_OF_RANGE: OutOfRange,
    StatusCode.UNIMPLEMENTED: Unimplemented,
    StatusCode.INTERNAL: ServerFault,
    StatusCode.UNAVAILABLE: Unavailable,
    StatusCode.DATA_LOSS: DataLoss,
    StatusCode.UNAUTHENTICATED: Unauthenticated,
}


def from_rpc_error(
    error: grpc.RpcError,
    *,
    target: str,
    was_reached: bool = False,
    invalid_argument: type[InvalidRequest] = InvalidRequest,
) -> LockstepError:
    """Turn the error of a call into ours.

    Args:
        error: what grpc raised.
        target: address of the server, for the message.
        was_reached: whether this client has had an answer from the server before.
        invalid_argument: what INVALID_ARGUMENT becomes.
    """
    call = cast("grpc.Call", error)  # every RpcError that a call raises is also its Call
    code = call.code()
    status = _rich_status(call)
    violations, reason = _read_details(status)
    message = call.details() or ""
    kind = EXCEPTION_BY_STATUS[code]
    if issubclass(kind, InvalidRequest):
        return invalid_argument(violations or message, code=code, reason=reason)
    if status is None or not message:
        message = _own_words(code, message, target=target, was_reached=was_reached)
    return kind(message, code=code, reason=reason)


def _own_words(code: StatusCode, details: str, *, target: str, was_reached: bool) -> str:
    """The message for a status that grpc itself may have made, in words that help."""
    match code:
        case StatusCode.UNAVAILABLE if was_reached:
            return f"the Lockstep server at {target} no longer answers: it has stopped, or cannot be reached any more"
        case StatusCode.CANCELLED | StatusCode.UNKNOWN if details != _CLOSED_HERE:  # no such answer is ours
            return f"the Lockstep server at {target} has broken off the call, as one does that stops; try again"
        case StatusCode.UNAVAILABLE:
            return (
                f"no Lockstep server answers at {target}; start one with `lockstep serve` or set LOCKSTEP_TARGET "
                f"to the address of a running one"
            )
        case StatusCode.DEADLINE_EXCEEDED:
            return f"the server at {target} did not answer in time"
        case StatusCode.UNIMPLEMENTED:
            return f"the server at {target} does not know this call: it is older than this client, or not Lockstep"
    return details or f"the server at {target} answered {code.name} without saying why"


def _rich_status(call: grpc.Call) -> status_pb2.Status | None:
    """The google.rpc.Status that a server may send along; None when there is none that can be read."""
    metadata: Iterable[tuple[str, str | bytes]] = call.trailing_metadata() or ()
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except Exception:  # whatever the bytes were, the plain status still says what happened
                return None
    return None


def _read_details(status: status_pb2.Status | None) -> tuple[list[Violation], str]:
    """Field violations and the stable reason."""
    violations: list[Violation] = []
    reason = ""
    for detail in status.details if status is not None else ():
        bad_request = error_details_pb2.BadRequest()
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(bad_request):
            violations += [Violation(item.field, item.description) for item in bad_request.field_violations]
        elif detail.Unpack(info):
            reason = info.reason
    return violations, reason
