"""Workers that live and have lost each other: brought together again, but not for ever."""

from typing import NamedTuple

PEER_LOSS_S = 2.0
"""How long workers may be without each other while all of them live, before they are brought together again."""
MAX_PEER_LOSSES = 5
"""How often they are without having finished a step in between, before the attempt is given up."""
HOPELESS = (
    f"the workers live but cannot reach each other: they were brought together {MAX_PEER_LOSSES} times and finished no "
    "step; see to the network between their nodes"
)


class PeerLosses(NamedTuple):
    """Whether workers are without each other, and how often they were since they last got anywhere.

    Not how often within some time: a meeting that fails takes as long as its timeout, and a step may take hours.

    Attributes:
        since: since when they are; None while they are not.
        brought_together: how often they were, without a finished step in between.
        went_on_in: the newest generation in which one has finished a step.
    """

    since: float | None = None
    brought_together: int = 0
    went_on_in: int = 0

    @property
    def deadline(self) -> float | None:
        """When they have to be brought together; None while they are."""
        return None if self.since is None else self.since + PEER_LOSS_S

    @property
    def words(self) -> str:
        """What to tell people when they are brought together."""
        return (
            "the workers live but have lost each other, and are brought together again: "
            f"{self.brought_together} of at most {MAX_PEER_LOSSES} times without a finished step"
        )

    @property
    def is_hopeless(self) -> bool:
        """Whether they were brought together too often."""
        return self.brought_together > MAX_PEER_LOSSES

    def begun(self, now: float) -> "PeerLosses":
        """A worker has lost the others."""
        return self if self.since is not None else self._replace(since=now)

    def ended(self) -> "PeerLosses":
        """They are told to meet."""
        return self._replace(since=None)

    def gone_on(self, generation: int) -> "PeerLosses":
        """A worker has finished a step in this generation: what was before is forgotten."""
        return self if generation <= self.went_on_in else self._replace(went_on_in=generation, brought_together=0)

    def counted(self) -> "PeerLosses":
        """They are to be brought together since they have lost each other: end and count this one."""
        return self._replace(since=None, brought_together=self.brought_together + 1)

    def is_due(self, now: float) -> bool:
        """Whether they have been without each other for too long."""
        return self.deadline is not None and now >= self.deadline
