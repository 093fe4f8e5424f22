"""How ranks fail, stop and disagree together."""

import os
import signal
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from lockstep.workers.actor.failures import job_error
from lockstep.workers.datasets.images.idx import IdxDataset
from lockstep.workers.engine import (
    DataError,
    Group,
    Listener,
    NotDeterministic,
    PeerLost,
    Point,
    Progress,
    Stopped,
    Trainer,
    Wish,
)
from lockstep.workers.engine.state.digest import weights_digest
from lockstep.workers.models.linear import SoftmaxRegression
from tests.distributed.test_one_curve import RandomImages


class AtStep(Listener):
    """Does something on one rank once a step is done."""

    def __init__(self, group: Group, rank: int, step: int, deed: Any) -> None:
        self.is_the_one, self.step, self.deed, self.is_asked = group.rank == rank, step, deed, False

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        if self.is_the_one and progress.step == self.step:
            self.deed(self)

    def wish(self) -> Wish:
        return Wish.STOP if self.is_asked else Wish.GO_ON


def ask_to_stop(listener: AtStep) -> None:
    listener.is_asked = True


def die(listener: AtStep) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_until(group: Group, deed: Any, deed_rank: int, bent_rank: int | None = None) -> tuple[str, str]:
    """What ended training, and the digest of what it left."""
    torch.manual_seed(1)
    module = SoftmaxRegression(64, 10)
    if group.rank == bent_rank:
        module.get_parameter("net.1.bias").data[0] = 1e-30
    trainer = Trainer(max_steps=50, batch_size=20, shards=4, log_every_steps=1)
    listener = AtStep(group, deed_rank, 3, deed)
    try:
        trainer.fit(
            module,
            RandomImages(200),
            lambda parameters: torch.optim.SGD(parameters, lr=0.05),
            group=group,
            listener=listener,
        )
    except (Stopped, PeerLost, NotDeterministic) as error:
        return f"{type(error).__name__}: {error}", weights_digest(module)
    return "done", weights_digest(module)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_all_ranks_stop_after_the_same_step_when_one_is_asked_to(ranks: Any, world_size: int) -> None:
    seen = ranks.run(world_size, train_until, ask_to_stop, world_size - 1)
    assert {ending for ending, _ in seen} == {"Stopped: stopped after step 3"}
    assert len({digest for _, digest in seen}) == 1


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_notice_at_once_when_a_rank_is_killed(ranks: Any, victim: int) -> None:
    outcomes = ranks.outcomes(3, train_until, die, victim)
    assert outcomes[victim] == (None, "died")
    for rank in {0, 1, 2} - {victim}:
        value, failure = outcomes[rank]
        assert failure is None
        assert value[0].startswith("PeerLost: worker ")


def test_ranks_that_do_not_hold_the_same_bits_say_so(ranks: Any) -> None:
    seen = ranks.run(2, train_until, die, -1, 1)
    for ending, _ in seen:
        assert ending.startswith("NotDeterministic: the model at the start differs")
        assert "seeded alike on every worker" in ending


def write_idx(root: Path, seed: int) -> None:
    """Write 200 training and 20 validation images of 2 by 2 pixels, of which the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    for prefix, size in (("train", 200), ("t10k", 20)):
        pixels = torch.randint(0, 256, (size * 4,), generator=generator, dtype=torch.uint8)
        images = struct.pack(">4I", 0x803, size, 2, 2) + bytes(pixels.tolist())
        (root / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">2I", 0x801, size) + bytes(n % 3 for n in range(size))
        (root / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


def train_on_files(group: Group, roots: list[str]) -> tuple[str, str, str]:
    """What a job that fails would say: its reason, the field and the message; or the digest of the weights."""
    data = IdxDataset(roots[group.rank])
    data.load()
    torch.manual_seed(1)
    trainer = Trainer(max_steps=5, batch_size=20, shards=4, log_every_steps=1)
    try:
        result = trainer.fit(
            SoftmaxRegression(4, 3), data, lambda parameters: torch.optim.SGD(parameters, lr=0.05), group=group
        )
    except DataError as error:
        told = job_error(error, group.rank)
        return told.reason, told.field, told.message
    return "", "", result.weights_digest


def test_ranks_that_have_read_different_data_say_so(ranks: Any, tmp_path: Path) -> None:
    roots = [tmp_path / name for name in "abc"]
    for root, seed in zip(roots, (1, 1, 2), strict=True):
        root.mkdir()
        write_idx(root, seed)
    names = [str(root) for root in roots]
    assert len(set(ranks.run(2, train_on_files, names[:2]))) == 1
    for reason, field, message in ranks.run(3, train_on_files, names):
        assert (reason, field) == ("DATA_INVALID", "data.idx.root")
        assert "the SHA-256 of the data differs between workers" in message
        assert "put the same files on all nodes" in message
