"""Which workers of a gang are lost together, and what people are told of it: one event for a node that went."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from lockstep.contract.wording import listed
from lockstep.workers.launcher.attempt.events import Died
from lockstep.workers.launcher.attempt.state import Member


class Loss(NamedTuple):
    """A worker that is gone, and what has become of it, such as "died: its process was killed or crashed"."""

    member: Member
    fate: str


def lost_with(died: Died, members: Sequence[Member]) -> list[Loss]:
    """The worker that has died, and those that are as good as dead.

    Args:
        died: what has come first, and which deaths have come meanwhile.
        members: all of the gang.
    """
    deaths = {death.number: death for death in (*died.others, died.first)}
    first = next(member for member in members if member.number == died.first.number)
    lost = []
    for member in members:
        if member.hung_because and first.hung_because:  # ended, as the other one was
            lost.append(Loss(member, _fate(member, member.hung_because)))
        elif member.number in deaths:
            words = member.hung_because or deaths[member.number].error.message
            lost.append(Loss(member, _fate(member, words)))
        elif died.first.is_with_node and member.node_id == first.node_id:
            lost.append(Loss(member, _fate(first, died.first.error.message)))
    return lost


def what_happened(lost: Sequence[Loss], gang: Iterable[Member]) -> str:
    """Say what has become of workers, of those with the same fate at once.

    Args:
        lost: the workers.
        gang: who was there before; when that was on more than one node, the node is told too.
    """
    tells_node = len({member.node_id for member in gang}) > 1
    by_fate = sorted(lost, key=lambda loss: (loss.member.node_id, loss.fate, loss.member.number))
    words = []
    for (node_id, fate), group in groupby(by_fate, key=lambda loss: (loss.member.node_id, loss.fate)):
        numbers = [loss.member.number for loss in group]
        who = f"worker{'' if len(numbers) == 1 else 's'} {listed(numbers)}"
        words.append(f"{who}{f' on node {node_id}' if tells_node else ''} {_of(len(numbers), fate)}")
    return "; ".join(words)


def _fate(member: Member, words: str) -> str:
    return words.removeprefix(f"worker {member.number} ")


def _of(workers: int, fate: str) -> str:
    """What has become of so many, in words that are made for one."""
    if workers == 1:
        return fate
    for one, many in (("its process was ", "their processes were "), ("its ", "their ")):
        fate = fate.replace(one, many)
    return f"were {fate[4:]}" if fate.startswith("was ") else fate
