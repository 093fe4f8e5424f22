"""What ends an attempt before its members have left by themselves, and what it ends with."""

from lockstep.contract.failures import FailureReason
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.engine import awake
from lockstep.workers.failures import first_cause
from lockstep.workers.launcher.gang import StopAsked

AFTERMATH_S = 10.0
"""How long the other workers have to report what they saw, once one has failed; rank 0 has all metric points."""
KEEP_GRACE_S = 60.0
"""How long the rest of a gang that has become too small may take to write a checkpoint."""
LAST_GRACE_S = 60.0
"""How long workers may take to go once one is done, and so all are: to deliver what they have printed, for instance."""


class Ending:
    """How an attempt comes to its end.

    Attributes:
        is_stopping: its workers were told to stop.
        is_too_small: they were, since fewer than `resources.min_workers` were left.
        deadline: when those are killed that are still there, as awake.now() tells; None while it goes on.
        errors: what workers have failed with.
        is_agreed: a worker that trained is done, and so all of them are: nobody meets any more.
    """

    def __init__(self) -> None:
        self.is_stopping = self.is_too_small = self.is_agreed = False
        self.deadline: float | None = None
        self.errors: list[JobError] = []
        self._too_small_because, self._refusable = "", 0
        self._has_left_in_order = False

    def stop(self, asked: StopAsked, *, has_trained: bool) -> None:
        """The workers are told to stop; before they have trained, nothing is there that would have to be kept."""
        self.is_stopping, self._refusable = True, asked.refusable
        self.deadline = awake.now() + (asked.grace_s if has_trained else 0.0)

    def is_refused_by(self, refused: int) -> bool:
        """Whether the workers have just refused to stop, since they could not keep what they had.

        Then they train as if they had not been told to.

        Args:
            refused: number of the last order that they have refused; 0 for none.
        """
        if not 0 < self._refusable <= refused or self.is_too_small or self.errors:
            return False
        self.is_stopping, self.deadline, self._refusable = False, None, 0
        return True

    def be_too_small(self, why: str) -> StopAsked:
        """Too few are left; those shall write a checkpoint and go.

        Args:
            why: what has happened to the others.
        """
        self.is_too_small, self._too_small_because = True, why
        return StopAsked(KEEP_GRACE_S, keep=True)

    def fail(self, error: JobError) -> None:
        """A worker could not go on for a reason that the others share."""
        self.errors.append(error)
        limit = awake.now() + AFTERMATH_S
        self.deadline = min(limit, self.deadline or limit)

    def lost_all(self, message: str, number: int) -> None:
        """Nobody is left, since the worker with this number is gone too."""
        self.errors.append(JobError(reason=FailureReason.WORKER_LOST, message=message, rank=number))

    def agree(self) -> None:
        """A worker that trained is done: all have its result, or have kept what they had on a stop."""
        self.is_agreed = True
        self._has_left_in_order = self._has_left_in_order or self.is_stopping
        self.deadline = self.deadline or awake.now() + LAST_GRACE_S

    def outcome(self) -> JobError | None:
        """Why the attempt has ended, when nobody is left; None when that was in order."""
        if self.is_too_small and not self._has_left_in_order and not self.errors:
            message = f"{self._too_small_because}; no worker was left that could write a checkpoint"
            return JobError(reason=FailureReason.WORKER_LOST, message=message)
        if self.errors and (self.is_too_small or not self.is_stopping):
            return first_cause(self.errors)
        return None


def launcher_failed(failure: Exception) -> JobError:
    """The error of a job whose attempt the launcher itself could not go on with."""
    return JobError(reason=FailureReason.INTERNAL, message=f"the launcher failed: {type(failure).__name__}: {failure}")
