"""What people are told of workers that are lost together."""

import pytest

from lockstep.contract.wording import count, go_on, listed
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.launcher.attempt.events import Death, Died
from lockstep.workers.launcher.attempt.state import Bits, Member, Ranked
from lockstep.workers.launcher.attempt.worker_loss_messages import Loss, lost_with, what_happened

KILLED = "died: its process was killed or crashed"


def member(number: int, node_id: str = "a", hung_because: str = "") -> Member:
    killed_because = f"worker {number} {hung_because}" if hung_because else None
    stage = Ranked(Bits("cpu AVX2", "0123"), number, 1)
    return Member(number, node_id, stage, f"address-{number}", killed_because=killed_because)


def died(member: Member, *others: Member, fate: str = KILLED, is_with_node: bool = False) -> Died:
    first, *rest = (
        Death(gone.number, JobError(message=f"worker {gone.number} {fate}"), is_with_node) for gone in (member, *others)
    )
    return Died(first, tuple(rest))


def test_those_are_lost_together_whose_deaths_have_come() -> None:
    gang = [member(0), member(1), member(2)]
    assert lost_with(died(gang[1]), gang) == [Loss(gang[1], KILLED)]
    assert lost_with(died(gang[1], gang[2]), gang) == [Loss(gang[1], KILLED), Loss(gang[2], KILLED)]


def test_those_who_hung_and_were_ended_are_lost_with_the_first_of_them_that_is_dead() -> None:
    silent = "did not answer for 30 s"
    gang = [member(0, hung_because=silent), member(1), member(2, hung_because=silent)]
    assert lost_with(died(gang[0]), gang) == [Loss(gang[0], silent), Loss(gang[2], silent)]
    assert lost_with(died(gang[1]), gang) == [Loss(gang[1], KILLED)]


def test_with_a_node_all_are_lost_that_were_there() -> None:
    gang = [member(0, "a"), member(1, "b"), member(2, "b")]
    fate = "died: its node is gone"
    assert lost_with(died(gang[2], fate=fate, is_with_node=True), gang) == [Loss(gang[1], fate), Loss(gang[2], fate)]


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ([(0, "a", KILLED)], f"worker 0 {KILLED}"),
        ([(0, "a", KILLED), (2, "a", KILLED)], "workers 0 and 2 died: their processes were killed or crashed"),
        (
            [(0, "a", "was killed: its node ran out of memory"), (1, "a", "was killed: its node ran out of memory")],
            "workers 0 and 1 were killed: their node ran out of memory",
        ),
        (
            [(0, "a", "did not answer for 30 s"), (1, "a", KILLED), (2, "a", "did not answer for 30 s")],
            f"workers 0 and 2 did not answer for 30 s; worker 1 {KILLED}",
        ),
    ],
)
def test_workers_with_one_fate_are_told_of_at_once(lost: list[tuple[int, str, str]], words: str) -> None:
    losses = [Loss(member(number, node_id), fate) for number, node_id, fate in lost]
    assert sorted(what_happened(losses, [loss.member for loss in losses]).split("; ")) == sorted(words.split("; "))


def test_the_node_is_told_when_there_are_several() -> None:
    gang = [member(0, "a"), member(1, "b"), member(2, "b")]
    lost = [Loss(gang[1], KILLED), Loss(gang[2], KILLED)]
    assert what_happened(lost, gang) == "workers 1 and 2 on node b died: their processes were killed or crashed"


def test_what_is_counted_is_one_or_many() -> None:
    assert [count(number, "GPU") for number in (0, 1, 2)] == ["0 GPUs", "1 GPU", "2 GPUs"]
    assert [go_on(number) for number in (1, 2)] == ["1 worker goes on", "2 workers go on"]
    assert [listed(range(number)) for number in (1, 2, 3)] == ["0", "0 and 1", "0, 1 and 2"]
