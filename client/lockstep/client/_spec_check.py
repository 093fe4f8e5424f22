"""The check of a spec before it is sent: the rules that the contract has, without asking a server.

What only a server knows (its files, the jobs there are, what its operator allows) is checked there.
"""

from __future__ import annotations

from collections.abc import Sequence

from lockstep.client.errors import InvalidSpec, Violation
from lockstep.contract.spec.validation import validate
from lockstep.v1.job_spec_pb2 import JobSpec


def check_spec(spec: JobSpec, misfits: Sequence[Violation] = ()) -> None:
    """Check a spec as far as it can be judged by itself.

    Args:
        spec: what could be read of it.
        misfits: what could not.

    Raises:
        InvalidSpec: with the misfits and every rule that the rest breaks, all at once.
    """
    broken = validate(spec, [misfit.field for misfit in misfits]).violations
    if misfits or broken:
        raise InvalidSpec([*misfits, *(Violation(*violation) for violation in broken)])
