"""Why jobs fail, in words for programs: JobError.reason."""

from __future__ import annotations

from enum import StrEnum


class FailureReason(StrEnum):
    """The stable words of JobError.reason; docs/troubleshooting.md says what each is and what to do."""

    SPEC_INVALID = "SPEC_INVALID"
    DATA_INVALID = "DATA_INVALID"
    USER_ERROR = "USER_ERROR"
    NON_FINITE_LOSS = "NON_FINITE_LOSS"
    WORKER_LOST = "WORKER_LOST"
    NOT_DETERMINISTIC = "NOT_DETERMINISTIC"
    PLACEMENT_FAILED = "PLACEMENT_FAILED"
    RANKS_DISAGREE = "RANKS_DISAGREE"
    INTERNAL = "INTERNAL"
