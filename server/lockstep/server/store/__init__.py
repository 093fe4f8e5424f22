"""The store: the one place that outlives everything else."""

from lockstep.server.store.rows import StoredEvent, StoredPoint
from lockstep.server.store.store import NewJob, Saved, Store
from lockstep.server.store.writer import StoreError

__all__ = ["NewJob", "Saved", "Store", "StoreError", "StoredEvent", "StoredPoint"]
