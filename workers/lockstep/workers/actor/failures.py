"""What went wrong in training, in the words of the contract."""

from lockstep.contract.failures import FailureReason
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.engine import (
    DataError,
    DeviceUnusable,
    HardwareDiffers,
    ModelError,
    NonFiniteParameters,
    NonFiniteStep,
    NotDeterministic,
    PeerLost,
    RanksDisagree,
)
from lockstep.workers.failures import error_raised, short_traceback


def job_error(error: BaseException, rank: int) -> JobError:
    """The error of a job that rank `rank` could not go on with."""
    match error:
        case DataError():
            return JobError(reason=FailureReason.DATA_INVALID, message=str(error), field=error.field, rank=rank)
        case DeviceUnusable():
            return JobError(reason=FailureReason.PLACEMENT_FAILED, message=f"worker {rank}: {error}", rank=rank)
        case NonFiniteStep() | NonFiniteParameters():
            return JobError(reason=FailureReason.NON_FINITE_LOSS, message=str(error), rank=rank)
        case NotDeterministic():
            return JobError(reason=FailureReason.NOT_DETERMINISTIC, message=str(error), rank=rank)
        case PeerLost():
            return JobError(reason=FailureReason.WORKER_LOST, message=str(error), rank=rank)
        case HardwareDiffers():
            hint = "equal bits need nodes of one class; take the others out of the cluster, or set fewer workers"
            return JobError(reason=FailureReason.RANKS_DISAGREE, message=f"{error}; {hint}", rank=rank)
        case RanksDisagree():
            message = f"{error}. The promise of equal bits is broken, so the job was stopped; please report this."
            return JobError(reason=FailureReason.RANKS_DISAGREE, message=message, rank=rank)
        case ModelError():
            # The message names the part; without a cause, the frames would be the engine's own.
            trace = short_traceback(error.__cause__) if error.__cause__ is not None else ""
            return JobError(reason=FailureReason.USER_ERROR, message=str(error), traceback=trace, rank=rank)
        case _:
            return error_raised(error, rank)


def is_of_the_user(error: BaseException) -> bool:
    """Whether its message says all that its user can mend, so that where it came up in this code helps nobody."""
    match error:
        case ModelError():
            return error.__cause__ is None
        case DataError() | DeviceUnusable() | NonFiniteStep() | NonFiniteParameters():
            return True
        case _:
            return False
