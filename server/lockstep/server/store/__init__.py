"""The store: the one place that outlives everything else."""

from lockstep.server.store.filters import JobFilter
from lockstep.server.store.rows import NOTHING_NEW, News, StoredCheckpoint, StoredEvent, StoredFile, StoredPoint
from lockstep.server.store.store import Store
from lockstep.server.store.trouble import DAMAGES, StoreError, is_full_disk, why_unopenable
from lockstep.server.store.writes import NewJob, Saved

__all__ = [
    "DAMAGES",
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
    "is_full_disk",
    "why_unopenable",
]
