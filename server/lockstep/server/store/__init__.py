"""The store: the one place that outlives everything else."""

from lockstep.server.store.filters import JobFilter
from lockstep.server.store.rows import NOTHING_NEW, News, StoredCheckpoint, StoredEvent, StoredFile, StoredPoint
from lockstep.server.store.store import NewJob, Saved, Store
from lockstep.server.store.writer import StoreError

__all__ = [
    "NOTHING_NEW",
    "JobFilter",
    "NewJob",
    "News",
    "Saved",
    "Store",
    "StoreError",
    "StoredCheckpoint",
    "StoredEvent",
    "StoredFile",
    "StoredPoint",
]
