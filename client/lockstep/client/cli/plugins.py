"""What another installed part adds, by entry points.

An entry point of the group `lockstep.commands` names a function that Typer can make a command of. It is loaded when its
command is called, not before: a client that has no server part installed lists `serve` all the same and says what is
missing.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

from lockstep.client.errors import MissingPackage

GROUP = "lockstep.commands"
_HELP = {"serve": "Start a server on this machine."}
_INSTALL = "pip install 'lockstep-train[all]', or pip install '.[all]' in a checkout"
_PASS_ALL_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def add_to(app: typer.Typer) -> None:
    """Add every command, unloaded."""
    for entry_point in sorted(entry_points(group=GROUP), key=lambda entry_point: entry_point.name):
        _add(app, entry_point)


def load(group: str, name: str, needed_by: str) -> Any:
    """Load what the entry point `name` of a group names.

    Raises:
        MissingPackage: no installed part has it, or what that part needs is not installed.
    """
    entry_point = next((found for found in entry_points(group=group) if found.name == name), None)
    if entry_point is None:
        raise MissingPackage(f"{needed_by} needs the server part, which is not installed: {_INSTALL}")
    return _load(entry_point, needed_by)


def _load(entry_point: EntryPoint, needed_by: str) -> Any:
    try:
        return entry_point.load()
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"{needed_by} needs the Python module {error.name}, which is not installed: {_INSTALL}"
        ) from error


def _add(app: typer.Typer, entry_point: EntryPoint) -> None:
    @app.command(
        entry_point.name,
        help=_HELP.get(entry_point.name, f"A command of {entry_point.module}."),
        context_settings=_PASS_ALL_ON,
        add_help_option=False,
    )
    def run(context: typer.Context) -> None:
        command = _load(entry_point, f"`lockstep {entry_point.name}`")
        inner = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        inner.command()(command)
        inner(args=list(context.args), prog_name=f"lockstep {entry_point.name}")
