"""Delivers what workers that are gone have left on a node."""

import time
from pathlib import Path

from lockstep.workers.log_shipper import Shipper
from lockstep.workers.log_spool import BASE, Spool

PATIENCE_S = 20.0
"""How long one spool may take; what has not arrived then waits for the next sweep."""
KEPT_S = 7 * 86_400.0
"""How long the spools of a server that does not come back are kept."""


def sweep(folder: Path, coordinator_address: str) -> int:
    """Deliver and remove every spool in a folder whose writer is gone, and remove very old ones of other servers.

    Args:
        folder: of one server's spools.
        coordinator_address: of that server now, host:port.

    Returns:
        How many were delivered.
    """
    delivered = 0
    for spool in Spool.orphans(folder):
        if not Shipper(spool, lambda: coordinator_address).deliver_rest(PATIENCE_S):
            break  # the server is away; nothing else would arrive
        delivered += 1
    for other in BASE.glob("*"):
        if other != folder:
            for spool in Spool.orphans(other):
                is_old = time.time() - spool.printed_at() > KEPT_S
                (spool.remove if is_old else spool.close)()
    return delivered
