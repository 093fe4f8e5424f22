"""Processes for tests of ranks: they fork from one that has imported what takes seconds, once."""

import multiprocessing
from multiprocessing.context import ForkServerContext

SLOW_IMPORTS = ["sklearn.datasets", "torch", "torch._dynamo", "lockstep.workers.training"]
"""torch imports its `_dynamo` when the first optimizer is made."""


def forking_context() -> ForkServerContext:
    """Where processes start in some milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    return context
