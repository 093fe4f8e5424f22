"""How errors of ours are told to a caller: the status code, and the details behind it."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lockstep.server.errors import (
    AlreadyExists,
    CheckpointNotFound,
    CheckpointUnreadable,
    ClusterTooSmall,
    DataLoss,
    DiskFull,
    FailedPrecondition,
    FilesHang,
    InvalidRequest,
    InvalidSpec,
    JobHasEnded,
    JobIsStopping,
    LockstepError,
    LogNotStored,
    MalformedMessage,
    MessageTooLarge,
    NotFound,
    PermissionDenied,
    ShuttingDown,
    StoreUnwritable,
    Violation,
)

DOMAIN = "lockstep"

# Status details travel in HTTP/2 trailers, and clients drop a call whose headers exceed 8 KiB. All violations of a sane
# spec fit; of an insane one the first ones do.
MAX_DETAILS_BYTES = 4_500
MAX_MESSAGE_BYTES = 1_200

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
