"""The store: the one place that outlives everything else."""

from lockstep.server.store.filters import JobFilter
from lockstep.server.store.store import Store
from lockstep.server.store.trouble import DAMAGES, StoreError, is_full_disk, why_unopenable
from lockstep.server.store.writes import NewJob, Saved

__all__ = [
    "DAMAGES",
    "JobFilter",
    "NewJob",
    "Saved",
    "Store",
    "StoreError",
    "is_full_disk",
    "why_unopenable",
]
