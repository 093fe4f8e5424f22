"""What can go wrong with a call, and how it is told to the caller.

LockstepError
├── InvalidRequest          a field of the request is at fault
│   ├── InvalidSpec         a field of the spec is at fault
│   └── MalformedMessage    the bytes are no message of the contract
├── NotFound                there is no such job
│   └── CheckpointNotFound  there is no such checkpoint or file of it
├── AlreadyExists           the request_id stands for another spec
├── FailedPrecondition      right in itself, but not now
│   ├── JobHasEnded
│   ├── JobIsStopping       it is being paused or cancelled
│   ├── ClusterTooSmall
│   └── CheckpointUnreadable  the server cannot reach it
├── FilesHang               a file system does not answer; try again
├── DataLoss                a file is not what was written
├── PermissionDenied        a report or a launcher that has no right to speak
├── MessageTooLarge
├── LogNotStored            what a worker printed cannot be written; try again
├── StoreUnwritable         nothing can be stored now; try again
│   └── DiskFull
└── ShuttingDown            the server is going down; try again
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lockstep.server import words

DOMAIN = "lockstep"

# Status details travel in HTTP/2 trailers, and clients drop a call whose headers exceed 8 KiB. All violations of a sane
# spec fit; of an insane one the first ones do.
MAX_DETAILS_BYTES = 4_500
MAX_MESSAGE_BYTES = 1_200


@dataclass(frozen=True)
class Violation:
    """One field of a request that is not as it must be."""

    field: str
    message: str


class LockstepError(Exception):
    """Base of everything that a caller is told about.

    Attributes:
        reason: a stable word for programs, sent as google.rpc.ErrorInfo.
    """

    reason = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(LockstepError):
    """One or more fields of a request are at fault."""

    reason = "REQUEST_INVALID"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(violation.message for violation in violations))
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, problem: str) -> InvalidRequest:
        """Make the error of a single field; `problem` continues the field's name."""
        return cls([Violation(field, f"{field} {problem}")])


class InvalidSpec(InvalidRequest):
    reason = "SPEC_INVALID"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(violations)
        count = len(violations)
        self.message = f"the spec has {words.count(count, 'error')}: {self.message}"


class MalformedMessage(InvalidRequest):
    reason = "MESSAGE_MALFORMED"

    def __init__(self, message_name: str) -> None:
        super().__init__([])
        package = message_name.rpartition(".")[0] or "the contract"
        self.message = f"the request is not a valid {message_name} message; send it with code generated from {package}"


class NotFound(LockstepError):
    reason = "JOB_NOT_FOUND"


class CheckpointNotFound(NotFound):
    reason = "CHECKPOINT_NOT_FOUND"


class AlreadyExists(LockstepError):
    reason = "REQUEST_ID_REUSED"


class FailedPrecondition(LockstepError):
    reason = "FAILED_PRECONDITION"


class JobHasEnded(FailedPrecondition):
    reason = "JOB_HAS_ENDED"


class JobIsStopping(FailedPrecondition):
    reason = "JOB_IS_STOPPING"


class ClusterTooSmall(FailedPrecondition):
    reason = "CLUSTER_TOO_SMALL"


class CheckpointUnreadable(FailedPrecondition):
    reason = "CHECKPOINT_UNREADABLE"


class FilesHang(LockstepError):
    reason = "FILES_HANG"


class DataLoss(LockstepError):
    reason = "DATA_LOSS"


class PermissionDenied(LockstepError):
    reason = "PERMISSION_DENIED"


class MessageTooLarge(LockstepError):
    reason = "MESSAGE_TOO_LARGE"


class LogNotStored(LockstepError):
    reason = "LOG_NOT_STORED"


class StoreUnwritable(LockstepError):
    reason = "STORE_UNWRITABLE"


class DiskFull(StoreUnwritable):
    reason = "DISK_FULL"


class ShuttingDown(LockstepError):
    reason = "SHUTTING_DOWN"

    def __init__(self) -> None:
        super().__init__("the server is shutting down; call again when it is back")


STATUS_BY_ERROR: dict[type[LockstepError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidSpec: grpc.StatusCode.INVALID_ARGUMENT,
    MalformedMessage: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    CheckpointNotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    JobHasEnded: grpc.StatusCode.FAILED_PRECONDITION,
    JobIsStopping: grpc.StatusCode.FAILED_PRECONDITION,
    ClusterTooSmall: grpc.StatusCode.FAILED_PRECONDITION,
    CheckpointUnreadable: grpc.StatusCode.FAILED_PRECONDITION,
    FilesHang: grpc.StatusCode.UNAVAILABLE,
    DataLoss: grpc.StatusCode.DATA_LOSS,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    MessageTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    LogNotStored: grpc.StatusCode.UNAVAILABLE,
    # Not RESOURCE_EXHAUSTED: it is worth trying again, and workers do.
    StoreUnwritable: grpc.StatusCode.UNAVAILABLE,
    DiskFull: grpc.StatusCode.UNAVAILABLE,
    ShuttingDown: grpc.StatusCode.UNAVAILABLE,
}

INTERNAL_WORDS = "the server failed at this call; its log says why"


def _shortened(text: str, max_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "..."


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    details = error_details_pb2.BadRequest()
    for number, violation in enumerate(violations):
        if details.ByteSize() + len(violation.message) * 2 > MAX_DETAILS_BYTES:
            details.field_violations.add(field="", description=f"and {len(violations) - number} more")
            break
        details.field_violations.add(field=violation.field, description=_shortened(violation.message, 1_000))
    return details


def to_status(error: LockstepError) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """Translate an error of ours.

    Returns:
        The status code, and the google.rpc.Status with ErrorInfo and, where fields are at fault, BadRequest.
    """
    code = STATUS_BY_ERROR[type(error)]
    status = status_pb2.Status(
        code=code_pb2.Code.Value(code.name), message=_shortened(error.message, MAX_MESSAGE_BYTES)
    )
    details: list[error_details_pb2.ErrorInfo | error_details_pb2.BadRequest] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    ]
    if isinstance(error, InvalidRequest) and error.violations:
        details.append(_bad_request(error.violations))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return code, status
