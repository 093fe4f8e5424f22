"""The rules of a spec for whoever has no server: `lockstep resolve`."""

from __future__ import annotations

from pathlib import Path

from lockstep.server.errors import InvalidSpec
from lockstep.server.spec.rules import Site
from lockstep.server.spec.validation import resolve
from lockstep.v1.job_spec_pb2 import JobSpec


def resolve_here(submitted: JobSpec) -> tuple[JobSpec, list[tuple[str, str]]]:
    """Check a spec and fill in every default, as a server that was started in this folder would.

    What only a server knows, such as the job that `init_from` names, stays unchecked.

    Returns:
        The resolved spec and nothing, or the submitted one and what is wrong: pairs of field and message.
    """
    site = Site(working_directory=Path.cwd(), shares_files_with_workers=True)
    try:
        return resolve(submitted, site), []
    except InvalidSpec as error:
        return submitted, [(violation.field, violation.message) for violation in error.violations]
