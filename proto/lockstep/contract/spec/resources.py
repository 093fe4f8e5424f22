"""What the workers of a job hold."""

from __future__ import annotations

import math

from lockstep.v1.job_spec_pb2 import ResourcesSpec

UNITS = 10_000
"""Of a CPU or a GPU: Ray counts in these, and cuts off what is smaller. So a third is 0.3333, and three of them fit."""


def gpus_of(resources: ResourcesSpec) -> float:
    """Return the GPUs that one worker holds; less than 1 where it shares one.

    Args:
        resources: of a resolved spec; those of earlier versions say nothing of a share.
    """
    return resources.gpus_per_worker * math.floor(round((resources.gpu_share or 1.0) * UNITS, 3)) / UNITS
