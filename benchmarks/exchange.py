"""The exchanges of the engine against gloo's all-reduce of the same size, per size and number of ranks.

    python benchmarks/exchange.py [--ranks 2 3 4]

All run in the same processes, interleaved; medians, and their ratio to gloo's. `engine/exchange/reduce.py` takes its
choice from this table.
"""

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from lockstep.workers.engine.exchange.group import Group
from lockstep.workers.engine.exchange.reduce import ChunkExchange, ShardSums, SwapExchange, padded
from lockstep.workers.engine.exchange.shards import Placement

WIDTHS = (1_000, 8_000, 50_000, 100_000, 200_000, 1_000_000, 5_000_000, 25_000_000)
PEER = "gloo all_reduce"


def measure(rank: int, world_size: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo")
    group = Group.from_environment()
    placement = Placement.deal(world_size, world_size)
    kinds = (SwapExchange, ChunkExchange)
    for width in WIDTHS:
        sums = ShardSums(placement, rank, padded(width, world_size), torch.float32, torch.device("cpu"))
        plain = torch.zeros_like(sums.accumulator)
        runs: dict[str, Callable[[], object]] = {PEER: partial(dist.all_reduce, plain)}
        runs |= {kind.__name__: kind(placement, group, sums).total for kind in kinds}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(max(10, min(200, 20_000_000 // width))):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - began)
        if rank == 0:
            medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
            shown = "  ".join(f"{name} {ms:.3f} ms ({ms / medians[PEER]:.2f}x)" for name, ms in medians.items())
            print(f"{world_size} ranks, {width:>9,} floats: {shown}", flush=True)
    dist.barrier()
    group.leave()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    for world_size in parser.parse_args().ranks:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        spawn(measure, (world_size, port), nprocs=world_size)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
