"""What a queued job waits for, in words."""

from __future__ import annotations

import pytest

from lockstep.contract.wording import count, part_of
from lockstep.server.scheduling.scheduler import Amount, Node, Request, amount
from lockstep.server.scheduling.waiting import QueuePlace, Room, why_it_waits

NODES = tuple(Node(node_id, amount(2, 1), amount(2, 1), node_id) for node_id in ("a", "b"))


def request(workers: int, min_workers: int, cpus: float = 1, gpus: float = 0) -> Request:
    return Request("job-1", workers, min_workers, amount(cpus, gpus))


@pytest.mark.parametrize(
    ("asked", "place", "held", "words"),
    [
        (
            request(4, 4),
            QueuePlace(0, "job-1"),
            {"a": amount(1, 0)},
            "waits for 4 workers with 1 CPU each; room for 3 now (3 of 4 CPUs and 2 of 2 GPUs free)",
        ),
        (
            request(3, 1, cpus=2, gpus=1),
            QueuePlace(1, "job-0"),
            {"a": amount(1, 1), "b": amount(1, 0)},
            "waits behind job-0 for 3 workers, or at least 1, with 2 CPUs and 1 GPU each; "
            "room for 0 now (2 of 4 CPUs and 1 of 2 GPUs free)",
        ),
        (
            request(1, 1, cpus=0.5),
            QueuePlace(9_999, "job-0"),
            {"a": amount(3, 0), "b": amount(2, 1)},  # a node has become smaller than what is held there
            "waits behind job-0 and 9,998 others for 1 worker with 0.5 CPUs each; "
            "room for 0 now (0 of 4 CPUs and 1 of 2 GPUs free)",
        ),
    ],
)
def test_a_job_says_what_it_waits_for(asked: Request, place: QueuePlace, held: dict[str, Amount], words: str) -> None:
    assert why_it_waits(asked, place, Room(NODES, held)) == words


def test_the_noun_goes_with_what_there_is_in_all() -> None:
    assert [count(number, "job") for number in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]
    assert [part_of(0, whole, "CPU") for whole in (1, 2)] == ["0 of 1 CPU", "0 of 2 CPUs"]
