"""What two specs have in common: canonical forms and digests."""

from __future__ import annotations

import hashlib

from lockstep.v1.job_spec_pb2 import InitFromSpec, JobSpec


def submit_digest(spec: JobSpec) -> str:
    """Return the SHA-256, hex, of a spec as it was submitted; tells whether a repeated request is the same."""
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()


def curve_digest(spec: JobSpec, init_weights_digest: str = "") -> str:
    """Return the SHA-256, hex, of the part of a resolved spec that determines the curve.

    Left out are the name, the labels, resources.workers, min_workers and gpu_share, training.audit and recovery, since
    no bit of the curve depends on them; and what is computed as it was before it could be said otherwise, so that
    jobs of then and now have one digest.

    Args:
        spec: the resolved spec.
        init_weights_digest: digest of the weights that `init_from.job_id` means: the same weights are the same
            beginning, whichever job wrote them. Empty when it is not known.
    """
    curve = JobSpec()
    curve.CopyFrom(spec)
    for name in ("name", "labels", "recovery"):
        curve.ClearField(name)
    for name in ("workers", "min_workers", "gpu_share"):
        curve.resources.ClearField(name)
    curve.training.ClearField("audit")
    for name, default in (("precision", "fp32"), ("memory_format", "contiguous")):
        if getattr(curve.training, name) == default:
            curve.training.ClearField(name)
    if init_weights_digest:
        curve.init_from.CopyFrom(InitFromSpec(uri=f"weights:{init_weights_digest}"))
    return hashlib.sha256(curve.SerializeToString(deterministic=True)).hexdigest()
