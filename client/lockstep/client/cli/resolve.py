"""The command `resolve`: a spec with every default filled in, without a server.

The rules are the server's. Its part offers them by an entry point of the group `lockstep.rules`, a function that takes
a JobSpec and returns the resolved one with what is wrong, as pairs of field and message.
"""

from __future__ import annotations

import typer

from lockstep.client._entry_points import load_part
from lockstep.client._spec_check import check_spec
from lockstep.client.cli import output
from lockstep.client.cli.connect import say_if_shards_follow
from lockstep.client.cli.jobs import Overrides, SpecFile
from lockstep.client.errors import InvalidSpec, Violation
from lockstep.client.spec import message_to_dict, read_spec

GROUP = "lockstep.rules"


def add_to(app: typer.Typer) -> None:
    app.command()(resolve)


def resolve(file: SpecFile, overrides: Overrides = None) -> None:
    """Check and complete a spec, without a server.

    Prints it with every default filled in, as a server that was started in this folder would store it. What only a
    server knows, such as the job that init_from names and whether the cluster is large enough, is not checked: for that
    there is `lockstep submit --dry-run`.

    Where the spec does not say resources.shards, they follow from the number of workers, and they are part of the
    curve: set them to compare runs of different numbers of workers.
    """
    spec, misfits = read_spec(file, overrides or ())
    if misfits:
        check_spec(spec, misfits)
    apply_rules = load_part(GROUP, "resolve", "`lockstep resolve`", "server")
    resolved, violations = apply_rules(spec)
    if violations:
        raise InvalidSpec([Violation(*violation) for violation in violations])
    output.write_yaml(message_to_dict(resolved))
    say_if_shards_follow(spec, resolved)
