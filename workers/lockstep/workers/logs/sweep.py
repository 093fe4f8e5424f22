"""Delivers what workers that are gone have left on a node."""

import time
from pathlib import Path

import structlog

from lockstep.workers.logs.shipper import Shipper
from lockstep.workers.logs.spool import BASE, Spool

PATIENCE_S = 20.0
"""How long one spool may take; what has not arrived then waits for the next sweep."""
MOST_FAILED = 2
"""Of so many jobs nothing must arrive before the server counts as away: of one, its log there may be to blame."""
KEPT_S = 7 * 86_400.0
"""How long a spool is kept that cannot be delivered, or whose server does not come back."""

log = structlog.get_logger()


def sweep(folder: Path, coordinator_address: str) -> int:
    """Deliver and remove every spool in a folder whose writer is gone, and remove very old ones that cannot go.

    Args:
        folder: of one server's spools.
        coordinator_address: of that server now, host:port.

    Returns:
        How many were delivered.
    """
    delivered = 0
    failed: set[str] = set()
    for spool in Spool.orphans(folder):
        is_old = _is_old(spool)
        if spool.label.job_id in failed:  # what comes first is delivered first
            spool.close()
        elif Shipper(spool, lambda: coordinator_address).deliver_rest(PATIENCE_S):
            delivered += 1
        else:
            failed.add(spool.label.job_id)
            if is_old:
                log.warning("what a worker printed could not be delivered and is removed", job_id=spool.label.job_id)
                spool.remove()
        if len(failed) >= MOST_FAILED:
            break
    for other in BASE.glob("*"):
        if other != folder:
            for spool in Spool.orphans(other):
                (spool.remove if _is_old(spool) else spool.close)()
    return delivered


def _is_old(spool: Spool) -> bool:
    return time.time() - spool.printed_at() > KEPT_S
