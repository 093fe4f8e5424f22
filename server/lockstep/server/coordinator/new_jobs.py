"""A job, made of what a user has submitted."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime

from lockstep.contract.facts import ENGINE_VERSION
from lockstep.server.checkpoints.init_from import find_first_weights
from lockstep.server.errors import ClusterTooSmall
from lockstep.server.jobs.job import Job, State
from lockstep.server.process.file_pool import FilePool
from lockstep.server.scheduling.waiting import WAITS
from lockstep.server.spec.digests import curve_digest
from lockstep.server.spec.rules import Site
from lockstep.server.spec.validation import fields_with_files, resolve
from lockstep.server.store import Store
from lockstep.v1.job_spec_pb2 import JobSpec


async def make_job(
    submitted: JobSpec,
    owner: str,
    site: Site,
    files: FilePool,
    store: Store,
    why_no_memory: Callable[[int], str | None],
) -> tuple[Job, tuple[str, ...]]:
    """Check a spec and make a job of it, which is not stored yet.

    Args:
        submitted: the spec as the user wrote it; it is not changed.
        owner: the principal who submitted it.
        site: what the rules may know of this place.
        files: looks at files that the spec names, which can take long on a network disk.
        store: knows the jobs to start from.
        why_no_memory: says why so many workers have no room in memory, if they have none.

    Returns:
        The job, and the names of the files of the checkpoint that it starts from.

    Raises:
        InvalidSpec: the spec breaks rules.
        ClusterTooSmall: its workers have no room in memory.
    """
    named = fields_with_files(submitted)
    if named:
        spec = await files.run(resolve, submitted, site, what=f"looking at the files in {' and '.join(named)}")
    else:
        spec = resolve(submitted, site)
    no_memory = why_no_memory(spec.resources.workers)
    if no_memory is not None:
        raise ClusterTooSmall(f"{no_memory}; lower resources.workers")
    first_weights = await find_first_weights(spec, store)
    job = Job(
        job_id=f"job-{secrets.token_hex(6)}",
        number=0,
        spec=spec,
        state=State.QUEUED,
        state_reason=WAITS,
        create_time=datetime.now(UTC),
        engine_version=ENGINE_VERSION,
        curve_digest=curve_digest(spec, first_weights.digest),
        init_from_uri=first_weights.uri,
        owner=owner,
    )
    return job, first_weights.files
