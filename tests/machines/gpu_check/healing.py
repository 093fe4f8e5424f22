"""A rank is killed with SIGKILL, or joins: the curve is that of an undisturbed run."""

from collections.abc import Iterator
from functools import partial

from lockstep.workers.engine import Activity
from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row, attempt, judge, the_same
from tests.machines.gpu_check.work import Work, fit
from tests.support.process_fleet import Context, Fault, Fleet


def train(context: Context, work: Work) -> str:
    """The outcome of a run that heals."""
    result = fit(work, context.group, context.listener, regroup=context.membership.next_group)
    return f"{result.weights_digest} {sorted(result.final_metrics.items())}"


PLACES: dict[str, tuple[Activity | str, ...]] = {
    "convolutions": (Activity.COMPUTE, Activity.EXCHANGE, "swap", Activity.UPDATE),
    "deep, in buckets": (Activity.COMPUTE, "swap"),
}
"""Where a rank is killed: in small rows everywhere, in buckets where some are under way."""


def check(plan: Plan) -> Iterator[Row]:
    """Small rows and buckets, killed in several places."""
    step, world_size = plan.steps // 2, plan.world_sizes[-1]
    with plan.fleet() as fleet:
        for model in (model for model in PLACES if model in plan.models):
            work = plan.work(model, shards=max(4, world_size))
            (undisturbed,) = fleet.run(1, train, work)
            for activity in PLACES[model]:
                place = activity if isinstance(activity, str) else activity.value
                fault = Fault(world_size - 1, activity, step)
                name = f"{model}: one of {world_size} killed, in {place}"
                yield attempt(name, partial(healed, fleet, name, work, world_size, [fault], undisturbed))
            fault, name = Fault(0, Activity.EXCHANGE, step), f"{model}: rank 0 of {world_size} killed"
            yield attempt(name, partial(healed, fleet, name, work, world_size, [fault], undisturbed))
            name = f"{model}: one joins {max(1, world_size - 1)}"
            yield attempt(name, partial(joined, fleet, name, work, max(1, world_size - 1), undisturbed))


def joined(fleet: Fleet, name: str, work: Work, before: int, undisturbed: str) -> Row:
    """One run that another process joins."""
    outcomes = fleet.run(before, train, work, joins_after_step=work.steps // 2)
    told = {f"rank {rank}": outcome for rank, outcome in enumerate(outcomes)}
    return the_same(name, {"undisturbed": undisturbed} | told, before + 2)


def healed(fleet: Fleet, name: str, work: Work, world_size: int, faults: list[Fault], undisturbed: str) -> Row:
    """One run in which ranks are killed."""
    outcomes = fleet.run(world_size, train, work, faults=faults)
    row = the_same(name, {"undisturbed": undisturbed} | {f"survivor {n}": told for n, told in enumerate(outcomes)})
    row.figures["pauses_s"] = [value for kind, value in fleet.messages if kind == "healed"]
    if len(outcomes) != world_size - len(faults):
        return judge(name, False, f"{len(outcomes)} survivors", f"{world_size - len(faults)}", map(str, fleet.messages))
    if row.figures["pauses_s"]:
        row.seen += f", pause {max(row.figures['pauses_s']):.2f} s"
    return row
