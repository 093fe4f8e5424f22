"""What every command that talks to a server starts with."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from lockstep.client._printable import printable
from lockstep.client.client import Client


@dataclass(frozen=True)
class Connect:
    """The global options."""

    target: str | None
    token: str | None


def client_of(context: typer.Context) -> Client:
    """A client of the server that the command line names."""
    options = context.find_object(Connect) or Connect(None, None)
    return Client(options.target, options.token)


def say(message: str) -> None:
    """Say something to the person: on standard error, never among the data."""
    typer.echo(printable(message), err=True)
