"""Workers that live and have lost each other: brought together again, but not for ever."""

from lockstep.workers.engine import awake

PEER_LOSS_S = 2.0
"""How long workers may be without each other while all of them live, before they are brought together again."""
MAX_PEER_LOSSES = 5
"""How often they are without having finished a step in between, before the attempt is given up."""
HOPELESS = (
    f"the workers live but cannot reach each other: they were brought together {MAX_PEER_LOSSES} times and finished no "
    "step; see to the network between their nodes"
)


class PeerLosses:
    """Whether workers are without each other, and how often they were since they last got anywhere.

    Not how often within some time: a meeting that fails takes as long as its timeout, and a step may take hours.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._count = 0
        self._went_on_in = 0

    @property
    def deadline(self) -> float | None:
        """When they have to be brought together; None while they are."""
        return None if self._since is None else self._since + PEER_LOSS_S

    @property
    def words(self) -> str:
        """What to tell people when they are brought together."""
        return (
            "the workers live but have lost each other, and are brought together again: "
            f"{self._count} of at most {MAX_PEER_LOSSES} times without a finished step"
        )

    def begin(self) -> None:
        """A worker has lost the others."""
        if self._since is None:
            self._since = awake.now()

    def end(self) -> None:
        """They are told to meet."""
        self._since = None

    def went_on(self, generation: int) -> None:
        """A worker has finished a step in this generation: what was before is forgotten."""
        if generation > self._went_on_in:
            self._went_on_in, self._count = generation, 0

    def is_due(self, now: float) -> bool:
        """Whether they have been without each other for too long."""
        return self.deadline is not None and now >= self.deadline

    def is_hopeless(self) -> bool:
        """End and count this one; whether there were too many."""
        self._since = None
        self._count += 1
        return self._count > MAX_PEER_LOSSES
