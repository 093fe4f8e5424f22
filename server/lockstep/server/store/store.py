"""The store of a data folder: a part for each kind of thing that is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lockstep.server.store.checkpoints import CheckpointStore
from lockstep.server.store.database import Database
from lockstep.server.store.errors import DAMAGES, StoreError, why_unopenable
from lockstep.server.store.installation import ClusterStore
from lockstep.server.store.jobs import JobStore
from lockstep.server.store.ledgers import LedgerStore
from lockstep.server.store.metrics import MetricStore


class Store:
    """All that is kept, in one database. Whoever needs one part is given that part.

    Attributes:
        jobs: jobs with their events.
        metrics: their metric points.
        checkpoints: their checkpoints.
        ledgers: where the time of their workers went.
        cluster: which installation this is, and the number of this start.
        database: what they share.
    """

    def __init__(self, path: Path, committed: Callable[[int, float], None] = lambda changes, seconds: None) -> None:
        """Open the store and bring its tables up to date.

        Args:
            path: of its file; the folder is there.
            committed: told of each commit by the writer's thread: how many changes it held and how long it took.

        Raises:
            StoreError: it cannot be opened.
        """
        self.database = Database(path)
        try:
            self.database.prepare()
            self.cluster = ClusterStore(self.database)
        except DAMAGES as error:
            self.database.close()
            raise StoreError(why_unopenable(error, path)) from error
        except StoreError:
            self.database.close()
            raise
        self.database.start(committed)
        self.jobs = JobStore(self.database)
        self.metrics = MetricStore(self.database)
        self.checkpoints = CheckpointStore(self.database)
        self.ledgers = LedgerStore(self.database)

    def close(self) -> None:
        """Write what is queued and close every connection."""
        self.database.close()

    async def try_out(self) -> None:
        """Begin a write and read something, as every call does.

        Raises:
            StoreUnwritable: it cannot be written.
            StoreError: it is closed.
        """
        await self.database.try_out()
