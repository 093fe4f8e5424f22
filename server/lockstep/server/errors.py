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

from lockstep.contract import wording


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
        self.message = f"the spec has {wording.count(count, 'error')}: {self.message}"


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
