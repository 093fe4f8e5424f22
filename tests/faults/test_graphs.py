"""Ranks that compute by graphs and die: the curve of one that computes call by call and does not."""

import pytest
import torch

from lockstep.workers.engine import Point, Trainer
from tests.distributed.test_buffers import BATCH_SIZE, SEED, Counts, Moving, Net, Points, Reassigning, Seldom
from tests.support.host_recorder import HostRecorder, shards_by
from tests.support.process_fleet import Context, Fault, Fleet

STEPS = 30


def train(context: Context, kind: type[Net], by_graphs: bool) -> tuple[str, list[Point], bool]:
    """Digest of the weights, points, and whether something was computed by a graph."""
    torch.manual_seed(1)
    trainer = Trainer(max_steps=STEPS, batch_size=BATCH_SIZE, shards=6, seed=SEED, log_every_steps=2, audit="off")
    recorder = HostRecorder()
    with shards_by(recorder if by_graphs else None):
        result = trainer.fit(
            kind(),
            Points(),
            lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
            group=context.group,
            regroup=context.membership.next_group,
            listener=context.listener,
        )
    return result.weights_digest, context.listener.points, recorder.replayed > 0


@pytest.mark.parametrize("kind", [Counts, Reassigning, Moving, Seldom])
def test_ranks_that_compute_by_graphs_have_the_curve_of_one_that_does_not_whoever_dies(
    fleet: Fleet, kind: type[Net]
) -> None:
    ((digest, points, _),) = fleet.run(1, train, kind, False)
    for world_size, faults in (
        (1, []),
        (2, []),
        (3, [Fault(1, "swap", 9, 1)]),
        (3, [Fault(2, "uneven", 14, 2), Fault(0, "swap", 21, 1)]),
    ):
        outcomes = fleet.run(world_size, train, kind, True, faults=faults)
        assert len(outcomes) == world_size - len(faults)
        for outcome in outcomes:
            assert outcome[:2] == (digest, points if outcome[1] else []), (world_size, faults)
        assert all(replayed for *_, replayed in outcomes) is (kind in (Counts, Reassigning)), (
            "the others look at values on the host"
        )
