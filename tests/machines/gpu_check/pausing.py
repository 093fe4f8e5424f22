"""Checkpoints: pause and resume, death and resume, and the state itself, there and back."""

from collections.abc import Iterator
from functools import partial

import torch

from lockstep.workers.engine import Activity, Listener, Origin, Stopped, Wish
from lockstep.workers.engine.flat_model import FlatModel
from lockstep.workers.engine.state.checkpoint import Checkpoints
from lockstep.workers.engine.state.digest import weights_digest
from lockstep.workers.engine.state.state import TrainState
from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row, attempt, judge, the_same
from tests.machines.gpu_check.work import Work, data_of, fit, module_of, momentum
from tests.support.process_fleet import Context, Fault, Fleet


class Pauses(Listener):
    """Asks to stop with a checkpoint once a step is done."""

    def __init__(self, after: int) -> None:
        self.after, self.step = after, 0

    def entered(self, activity: Activity, step: int) -> None:
        self.step = step

    def wish(self) -> Wish:
        return Wish.KEEP_AND_STOP if self.step >= self.after else Wish.GO_ON


def origin_of(work: Work) -> Origin:
    return Origin(Checkpoints(work.checkpoints), work.checkpoint_every)


def go_on(context: Context, work: Work) -> str:
    """Train, from the newest checkpoint if there is one."""
    regroup = context.membership.next_group
    return fit(work, context.group, context.listener, regroup=regroup, origin=origin_of(work)).weights_digest


def pause(context: Context, work: Work, after: int) -> str:
    """Train up to a step, and leave a checkpoint."""
    try:
        return fit(work, context.group, Pauses(after), origin=origin_of(work)).weights_digest
    except Stopped as stopped:
        return str(stopped)


def there_and_back(context: Context, work: Work) -> list[str]:
    """Write a state from the device, read it onto the device; what differs, in words."""
    result = fit(work, context.group, origin=origin_of(work))
    state = Checkpoints(work.checkpoints).read(work.steps)
    module = module_of(work, data_of(work)).to(work.device)
    optimizer = momentum([FlatModel(module).parameters])
    state.put_into(module, optimizer)
    again = TrainState.of(module, optimizer, work.steps, {})
    differs = [name for name, tensor in state.model.items() if not torch.equal(again.model[name], tensor)]
    differs += [name for name, tensor in state.training.items() if not torch.equal(again.training[name], tensor)]
    places = {str(value.device) for values in optimizer.state.values() for value in values.values()}
    differs += [f"the optimizer's state is on {place}" for place in places - {str(torch.device(work.device))}]
    if weights_digest(module) != result.weights_digest:
        differs.append(f"the digest: {weights_digest(module)} after, {result.weights_digest} before")
    return differs


def check(plan: Plan) -> Iterator[Row]:
    """A model of buffers and one in buckets."""
    models = [model for model in ("convolutions", "deep, in buckets") if model in plan.models]
    with plan.fleet() as fleet:
        for model in models:
            work = plan.work(model, shards=4)
            yield attempt(f"{model}: paused and resumed", partial(paused, fleet, plan, work))
            yield attempt(f"{model}: the only rank killed, and resumed", partial(died, fleet, plan, work))
            name = f"{model}: state from device to file to device"
            yield attempt(name, partial(kept, name, fleet, plan, work))


def kept(name: str, fleet: Fleet, plan: Plan, work: Work) -> Row:
    """Every tensor of a state is what it was."""
    folder = str(plan.folder / f"whole {work.model}")
    (differs,) = fleet.run(1, there_and_back, work.but(checkpoints=folder))
    return judge(name, not differs, f"{len(differs)} entries differ" if differs else "equal", "equal", differs)


def paused(fleet: Fleet, plan: Plan, work: Work) -> Row:
    """Paused with one number of ranks, resumed with another."""
    before, after = 1, plan.world_sizes[0]
    (undisturbed,) = fleet.run(1, go_on, work.but(checkpoints=str(plan.folder / f"undisturbed {work.model}")))
    work = work.but(checkpoints=str(plan.folder / f"paused {work.model}"))
    told = fleet.run(before, pause, work, work.steps // 2)
    name = f"{work.model}: paused on {before}, resumed on {after}"
    if told != [f"stopped after step {work.steps // 2}"] * before:
        return judge(name, False, str(told), f"stopped after step {work.steps // 2}")
    outcomes = fleet.run(after, go_on, work)
    return with_notes(fleet, the_same(name, {"undisturbed": undisturbed} | dict(enumerate_ranks(outcomes))))


def died(fleet: Fleet, plan: Plan, work: Work) -> Row:
    """The only rank was killed; another process goes on from the newest checkpoint."""
    (undisturbed,) = fleet.run(1, go_on, work.but(checkpoints=str(plan.folder / f"whole run {work.model}")))
    folder = str(plan.folder / f"died {work.model}")
    work = work.but(checkpoints=folder, checkpoint_every=max(1, work.steps // 4))
    fleet.run(1, go_on, work, faults=[Fault(0, Activity.COMPUTE, work.steps - 1)])
    outcomes = fleet.run(1, go_on, work)
    name = f"{work.model}: the only rank killed, and resumed"
    return with_notes(fleet, the_same(name, {"undisturbed": undisturbed} | dict(enumerate_ranks(outcomes))))


def enumerate_ranks(outcomes: list[str]) -> Iterator[tuple[str, str]]:
    return ((f"rank {rank}", outcome) for rank, outcome in enumerate(outcomes))


def with_notes(fleet: Fleet, row: Row) -> Row:
    """The row, which has failed if nobody says that training went on from a checkpoint."""
    notes = [words for kind, words in fleet.messages if kind == "noted"]
    if not any("going on from the checkpoint" in words for words in notes):
        return judge(row.check, False, "began anew", "goes on from a checkpoint", [*notes, *row.details])
    return row
