"""The store: the one place that outlives everything else."""

from lockstep.server.store.checkpoints import CheckpointStore
from lockstep.server.store.errors import DAMAGES, StoreError, is_full_disk, why_unopenable
from lockstep.server.store.filters import JobFilter
from lockstep.server.store.jobs import JobStore, NewJob, Saved
from lockstep.server.store.ledgers import LedgerStore
from lockstep.server.store.metrics import MetricStore
from lockstep.server.store.store import Store

__all__ = [
    "DAMAGES",
    "CheckpointStore",
    "JobFilter",
    "JobStore",
    "LedgerStore",
    "MetricStore",
    "NewJob",
    "Saved",
    "Store",
    "StoreError",
    "is_full_disk",
    "why_unopenable",
]
