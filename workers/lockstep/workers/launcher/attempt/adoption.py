"""An attempt as its workers tell a launcher that takes it over."""

from collections.abc import Sequence

from lockstep.workers.calls import Description
from lockstep.workers.launcher.attempt.state import (
    Attempt,
    Bits,
    Finished,
    Gathering,
    Leaving,
    Member,
    Plan,
    Ranked,
    Reading,
    Ready,
    Stage,
    Training,
)


def adopted(plan: Plan, workers: Sequence[Description]) -> tuple[Attempt, bool]:
    """The attempt of these workers, and whether all of their newest generation are among them.

    Args:
        plan: what was ordered.
        workers: what each of them tells.
    """
    generation = max(told.generation for told in workers)
    staying = [told for told in workers if not told.is_dismissed]
    current = [told for told in staying if told.generation == generation]
    is_whole = bool(current) and len(current) == len(staying) == current[0].members
    members = tuple(
        Member(told.number, told.node_id, _stage(told, generation), told.address)
        for told in sorted(workers, key=lambda told: told.number)
    )
    state = Training() if generation > 0 else Gathering()
    return Attempt(plan, state, members, generation, created=members[-1].number + 1), is_whole


def _stage(told: Description, generation: int) -> Stage:
    """How far a worker has come, of a gang with this generation."""
    bits = Bits(told.hardware, told.data) if told.generation > 0 else None
    is_current = 0 < told.generation == generation
    if told.is_dismissed:
        return Leaving(is_surplus=True)
    if told.has_ended:
        return Finished(is_current, bits)
    if bits is None:
        return Reading()
    return Ranked(bits, told.rank, told.since or generation) if is_current else Ready(bits, told.since or None)
