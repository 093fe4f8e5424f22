"""Commands that another installed part adds, by an entry point of the group `lockstep.commands`.

The entry point names a function that Typer can make a command of. It is loaded when its command is called, not
before: a client that has no server part installed lists `serve` all the same and says what is missing.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import typer

from lockstep.client._entry_points import load_entry_point

GROUP = "lockstep.commands"
_HELP = {"serve": "Start a server on this machine."}
_PASS_ALL_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def add_to(app: typer.Typer) -> None:
    """Add every such command, unloaded."""
    for entry_point in sorted(entry_points(group=GROUP), key=lambda entry_point: entry_point.name):
        _add(app, entry_point)


def _add(app: typer.Typer, entry_point: EntryPoint) -> None:
    @app.command(
        entry_point.name,
        help=_HELP.get(entry_point.name, f"A command of {entry_point.module}."),
        context_settings=_PASS_ALL_ON,
        add_help_option=False,
    )
    def run(context: typer.Context) -> None:
        command = load_entry_point(entry_point, f"`lockstep {entry_point.name}`", "all")
        inner = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        inner.command(context_settings={"help_option_names": ["-h", "--help"]})(command)
        inner(args=list(context.args), prog_name=f"lockstep {entry_point.name}")
