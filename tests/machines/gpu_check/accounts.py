"""The ledger: phases add up to the wall time, and a GPU's events tell the parts of a step."""

import time
from collections.abc import Iterator
from functools import partial

import torch

from lockstep.workers.engine import Account, Ledger, Phase
from lockstep.workers.engine.ledger import CudaMarks
from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row, attempt, judge, not_run
from tests.machines.gpu_check.work import Work, fit
from tests.support.process_fleet import Context

TOLERANCE, TOLERANCE_S = 0.02, 0.02
PARTS = (Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)
RATIO = 4
"""How much more work the second part of a stream is given than the first."""


def train(context: Context, work: Work) -> tuple[Account, float]:
    """The account of a rank, and the seconds that passed."""
    began = time.perf_counter()
    ledger = Ledger()
    fit(work, context.group, ledger=ledger)
    return ledger.account(), time.perf_counter() - began


def check(plan: Plan) -> Iterator[Row]:
    """Alone and with ranks that share the device."""
    with plan.fleet() as fleet:
        for world_size in (1, plan.world_sizes[0]):
            work = plan.work(plan.models[-1], shards=4, steps=4 * plan.steps)
            for rank, (account, took_s) in enumerate(fleet.run(world_size, train, work)):
                yield adds_up(f"rank {rank} of {world_size}", account, took_s, work.steps)
    yield attempt("ledger, CUDA events", partial(events, plan))


def adds_up(who: str, account: Account, took_s: float, steps: int) -> Row:
    """Whether an account is whole, and each part of a step has its share."""
    phases = dict(zip((phase.name.lower() for phase in Phase), account.seconds, strict=True))
    total = sum(account.seconds)
    wrong = [f"{name} is {seconds:.4f} s" for name, seconds in phases.items() if seconds < 0]
    wrong += [f"{phase.name.lower()} is nothing" for phase in PARTS if account.seconds[phase] <= 0]
    if abs(total - took_s) > TOLERANCE * took_s + TOLERANCE_S:
        wrong.append(f"the phases are {total:.3f} s together")
    if account.steps != steps:
        wrong.append(f"{account.steps} steps of {steps}")
    shares = ", ".join(f"{name} {seconds / took_s:.0%}" for name, seconds in phases.items() if seconds > 0.01 * took_s)
    seen = f"{total:.3f} s: {shares}"
    return judge(f"ledger, {who}", not wrong, seen, f"{took_s:.3f} s, all parts of it", wrong, phases=phases)


def events(plan: Plan) -> Row:
    """Whether marks on a stream tell how long the device took for what came between them."""
    if not plan.is_gpu:
        return not_run("ledger, CUDA events", "no GPU")
    device = torch.device(plan.device)
    matrix = torch.randn(2048, 2048, device=device)

    def compute(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    compute(10)
    torch.cuda.synchronize(device)
    marks = CudaMarks(device)
    began = time.perf_counter()
    marks.set(Phase.FORWARD)
    compute(50)
    marks.set(Phase.BACKWARD)
    compute(RATIO * 50)
    seconds = marks.seconds()
    took_s = time.perf_counter() - began
    parts = seconds.get(Phase.FORWARD, 0.0), seconds.get(Phase.BACKWARD, 0.0)
    is_right = 0.5 * took_s <= sum(parts) <= 1.02 * took_s and 0.7 * RATIO <= parts[1] / parts[0] <= 1.3 * RATIO
    seen = f"{1e3 * parts[0]:.1f} and {1e3 * parts[1]:.1f} ms of {1e3 * took_s:.1f}"
    return judge("ledger, CUDA events", is_right, seen, f"1 to {RATIO}, together not more than the whole", [seen])
