"""One digest: twice in one process, and on any number of ranks that share the card."""

import hashlib
from collections.abc import Iterator
from functools import partial

from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row, attempt, judge, the_same
from tests.machines.gpu_check.work import Recorder, Work, fit
from tests.support.process_fleet import Context, Fleet

IN_PRECISIONS = ("convolutions", "attention", "recurrent")
"""Models that are trained in other precisions too."""


def curve(context: Context, work: Work) -> str:
    """Digest of the weights and of every metric point."""
    recorder = Recorder()
    result = fit(work, context.group, recorder)
    assert recorder.points
    return hashlib.sha256(repr((result.weights_digest, recorder.points)).encode()).hexdigest()


def twice(context: Context, work: Work) -> list[str]:
    """The same, two times in this process, with another model's run between them."""
    first = curve(context, work)
    other = "mlp" if work.model != "mlp" else "softmax_regression"
    fit(work.but(model=other, steps=2, shards=2), context.group)
    return [first, curve(context, work)]


def way_of_the_exchange(context: Context) -> str:
    """How the ranks' tensors travel."""
    return "host memory" if context.group.holds_up_the_host else "NCCL"


def check(plan: Plan) -> Iterator[Row]:
    """Digests of all models, first of the default number of shards."""
    with plan.fleet() as fleet:
        ways = fleet.run(plan.world_sizes[0], way_of_the_exchange)
        how = "chosen by themselves" if plan.is_gpu else "as told"
        name = f"ranks that share a device exchange through host memory, {how}"
        yield judge(name, set(ways) == {"host memory"}, " and ".join(sorted(set(ways))), "host memory", map(str, ways))
        for precision, memory_format in (("tf32", "contiguous"), ("bf16", "contiguous"), ("bf16", "channels_last")):
            for model in IN_PRECISIONS:
                if model in plan.models and (plan.is_gpu or precision != "tf32"):
                    name = f"{model}, {precision}, {memory_format}"
                    work = plan.work(model, shards=4, precision=precision, memory_format=memory_format)
                    yield attempt(name, partial(of_one_model, name, fleet, plan, work))
        for shards in plan.shards:
            for model in plan.models:
                name = f"{model}, {shards} shard{'s' if shards > 1 else ''}"
                yield attempt(name, partial(of_one_model, name, fleet, plan, plan.work(model, shards=shards)))


def of_one_model(name: str, fleet: Fleet, plan: Plan, work: Work) -> Row:
    """One digest for each number of ranks."""
    (alone,) = fleet.run(1, twice, work)
    digests = {"1 rank, first time": alone[0], "1 rank, second time": alone[1]}
    for world_size in plan.world_sizes:
        if world_size <= work.shards:
            for rank, digest in enumerate(fleet.run(world_size, curve, work)):
                digests[f"{world_size} ranks, rank {rank}"] = digest
    return the_same(name, digests)
