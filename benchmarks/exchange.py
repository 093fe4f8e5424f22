"""The exchanges of the engine against a plain all-reduce of the same size, per size and number of ranks.

    python benchmarks/exchange.py [--ranks 2 3 4]

All run in the same processes, interleaved; medians. `engine/reduce.py` takes its choices from this table.
"""

import argparse
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.distributed_c10d import PrefixStore

from lockstep.workers.engine.group import Group, open_rendezvous, reach_rendezvous
from lockstep.workers.engine.reduce import ChunkExchange, PairExchange, ShardSums, SwapExchange, padded
from lockstep.workers.engine.shards import Placement

WIDTHS = (1_000, 8_000, 50_000, 200_000, 1_000_000, 5_000_000)


def measure(rank: int, world_size: int, port: int) -> None:
    torch.set_num_threads(1)
    group = Group.join(PrefixStore(str(world_size), reach_rendezvous("127.0.0.1", port, world_size)), rank, world_size)
    placement = Placement.deal(world_size, world_size)
    kinds = [SwapExchange, ChunkExchange] + ([PairExchange] if world_size == 2 else [])
    for width in WIDTHS:
        sums = ShardSums(placement, rank, padded(width, world_size), torch.float32, torch.device("cpu"))
        plain = torch.zeros_like(sums.accumulator)
        runs = {"all_reduce": lambda plain=plain: dist.all_reduce(plain)}
        runs |= {kind.__name__: kind(placement, group, sums).total for kind in kinds}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(max(10, min(200, 20_000_000 // width))):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - began)
        if rank == 0:
            medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
            shown = "  ".join(f"{name} {ms:.3f} ms ({ms / medians['all_reduce']:.2f}x)" for name, ms in medians.items())
            print(f"{world_size} ranks, {width:>9,} floats: {shown}", flush=True)
    dist.barrier()
    group.leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    _store, port = open_rendezvous("127.0.0.1", 1)
    for world_size in parser.parse_args().ranks:
        mp.spawn(measure, (world_size, port), nprocs=world_size)


if __name__ == "__main__":
    main()
