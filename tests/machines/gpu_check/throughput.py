"""Samples per second of the engine, beside plain PyTorch and DistributedDataParallel on the same device, in turns."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lockstep.workers.engine import Listener, Point, Progress
from lockstep.workers.engine.determinism import fix_arithmetic
from lockstep.workers.engine.precision import Precision
from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row, attempt
from tests.machines.gpu_check.work import Work, data_of, fit, module_of

MODELS = ("softmax_regression", "mlp", "lenet, relu, max", "convolutions", "deep, in buckets")
WARM_UP = 10
LEARNING_RATE = 0.01
PLAIN = "plain PyTorch"


class Stopwatch(Listener):
    """Notes when each log point is reached."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.times[progress.step] = time.perf_counter()


def check(plan: Plan) -> Iterator[Row]:
    """Each model; figures, of which nothing is wanted yet."""
    backend = "nccl" if plan.is_gpu and dist.is_nccl_available() else "gloo"
    fix_arithmetic(1)  # cuBLAS looks at it when it is used first
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        for model in MODELS:
            if model in plan.models:
                yield attempt(f"samples/s, {model}", partial(compare, plan, model, backend))
    finally:
        dist.destroy_process_group()


def compare(plan: Plan, model: str, backend: str) -> Row:
    """All contenders in turns; medians, and medians of the ratio to plain PyTorch within a round."""
    work = plan.work(model, steps=plan.timed_steps)
    contenders: dict[str, Callable[[], float]] = {
        PLAIN: lambda: plain(work),
        f"DDP, {backend}": lambda: plain(work, lambda module: DistributedDataParallel(module, static_graph=True)),
    }
    if plan.is_gpu:
        contenders["plain PyTorch, TF32"] = lambda: plain(work.but(precision="tf32"))
    in_bf16 = work.but(precision="bf16", memory_format="channels_last")
    contenders["plain PyTorch, bf16 channels_last"] = lambda: plain(in_bf16)
    contenders["1 shard, bf16 channels_last"] = lambda: engine(in_bf16, 1)
    for shards in sorted(plan.shards):
        contenders[f"{shards} shard{'s' if shards > 1 else ''}"] = lambda shards=shards: engine(work, shards)  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(plan.rounds):
        for name, run in contenders.items():
            rates[name].append(run())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: statistics.median(value / peer for value, peer in zip(values, rates[PLAIN], strict=True))
        for name, values in rates.items()
    }
    seen = "; ".join(f"{name} {medians[name]:,.0f} ({ratios[name]:.2f}x)" for name in medians)
    return Row(f"samples/s, {model}, batch {work.batch_size}", seen, figures={"medians": medians, "ratios": ratios})


def engine(work: Work, shards: int) -> float:
    """Of the engine as jobs use it, its log points included, between the end of the warm-up and the last of them."""
    fix_arithmetic(1)
    watch = Stopwatch()
    every = max(1, work.steps // 2)
    fit(work.but(shards=shards, steps=3 * every + 1), None, watch, log_every=every)
    return 2 * every * work.batch_size / (watch.times[3 * every] - watch.times[every])


def plain(work: Work, wrap: Callable[[nn.Module], nn.Module] = lambda module: module) -> float:
    """Of a plain loop at its best: data on the device, fastest kernels, nothing waited for, no metrics."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = work.precision == "tf32"
    device = torch.device(work.device)
    data = data_of(work)
    module = module_of(work, data).to(device)
    precision = Precision(work.precision, work.memory_format)
    precision.lay_out(module)
    loss_of, forward = module.loss, wrap(module)
    optimizer = torch.optim.SGD(forward.parameters(), lr=LEARNING_RATE, momentum=0.9, fused=device.type == "cuda")
    examples = data.train.to(device)
    order = torch.randperm(len(examples), device=device)
    forward.train()
    began = 0.0
    for step in range(WARM_UP + work.steps):
        if step == WARM_UP:
            wait_for(device)
            began = time.perf_counter()
        start = step * work.batch_size % (len(examples) - work.batch_size)
        chosen: Tensor = order[start : start + work.batch_size]
        inputs = data.transform(examples.inputs.index_select(0, chosen))
        loss = loss_of(precision.outputs(forward, inputs), examples.targets.index_select(0, chosen)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wait_for(device)
    return work.steps * work.batch_size / (time.perf_counter() - began)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
