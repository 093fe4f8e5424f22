"""What two specs have in common: canonical forms and digests."""

from __future__ import annotations

import hashlib

from lockstep.v1.job_spec_pb2 import JobSpec

# Version of the engine's arithmetic; the engine has the same constant, and a test keeps them equal.
ENGINE_VERSION = "1"


def submit_digest(spec: JobSpec) -> str:
    """Return the SHA-256, hex, of a spec as it was submitted; tells whether a repeated request is the same."""
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()


def curve_digest(spec: JobSpec) -> str:
    """Return the SHA-256, hex, of the part of a resolved spec that determines the curve.

    Left out are the name, the labels, resources.workers and recovery, since no bit of the curve depends on them.
    """
    curve = JobSpec()
    curve.CopyFrom(spec)
    for name in ("name", "labels", "recovery"):
        curve.ClearField(name)
    curve.resources.ClearField("workers")
    return hashlib.sha256(curve.SerializeToString(deterministic=True)).hexdigest()
