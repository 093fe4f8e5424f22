"""What the workers of a job hold."""

from __future__ import annotations

from lockstep.v1.job_spec_pb2 import ResourcesSpec


def gpus_of(resources: ResourcesSpec) -> float:
    """Return the GPUs that one worker holds; less than 1 where it shares one.

    Args:
        resources: of a resolved spec; those of earlier versions say nothing of a share.
    """
    return resources.gpus_per_worker * (resources.gpu_share or 1.0)
