"""The commands put together, and what surrounds each: connection, errors, exit codes."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from lockstep.client.cli import (
    catalog,
    change,
    checkpoints,
    exit_codes,
    jobs,
    logs,
    metrics,
    nodes,
    plugins,
    resolve,
    top,
)
from lockstep.client.cli.connect import Connect, say
from lockstep.client.cli.ending import clear_up_at_signals
from lockstep.client.errors import JobFailed, LockstepError

# What the library that checks values says in words that a person would not.
_WORDS = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "it must be a whole number.",
    "Input should be a valid number, unable to parse string as a number": "it must be a number.",
    "Input should be ": "it must be ",
}


class _Group(TyperGroup):
    """All commands."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except typer.BadParameter as error:
            for theirs, ours in _WORDS.items():
                if error.message.startswith(theirs):  # at most one of them, the longest first
                    error.message = ours + error.message.removeprefix(theirs)
            raise


class _Command(TyperCommand):
    """One command; what must be given stands in its usage without braces."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [re.sub(r"^{(.*)}$", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]


class _Commands(typer.Typer):
    """What commands are added to."""

    def command(self, name: str | None = None, **options: Any) -> Any:
        return super().command(name, **{"cls": _Command, **options})


_SIGNALLED = 128
"""Codes above tell which signal ended a command."""


def build() -> typer.Typer:
    """Make the command line anew."""
    app = _Commands(
        name="lockstep",
        cls=_Group,
        help="Distributed training as a service: submit jobs, follow them, read their metrics.",
        epilog=exit_codes.HELP,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_connect)
    for module in (jobs, resolve, change, metrics, logs, checkpoints, nodes, top, catalog):
        module.add_to(app)
    app.command()(version)
    plugins.add_to(app)
    return app


def _print_version(is_asked: bool) -> None:
    if is_asked:
        version()
        raise typer.Exit(exit_codes.OK)


def _connect(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Address of the server. [LOCKSTEP_TARGET; default: 127.0.0.1:50051]"),
    ] = None,
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")
    ] = False,
) -> None:
    context.obj = Connect(target)


def version() -> None:
    """Print the version of this client."""
    typer.echo(f"lockstep {version_of('lockstep-train')}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    _open_what_is_closed()
    clear_up_at_signals()
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    if arguments is None and code > _SIGNALLED:
        # All is cleared up. A call that was broken off may still have a thread of gRPC's, which can crash while the
        # interpreter is taken apart.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _open_what_is_closed() -> None:
    """Let `lockstep cancel JOB >&-` work: Python has no stream at all for what the shell has closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  lives as long as we


def _run(arguments: list[str]) -> int:
    try:
        code = _run_to_its_end(arguments)
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        # Whoever read our output has left. Python would complain at exit when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.FAILED
    return code


def _run_to_its_end(arguments: list[str]) -> int:
    try:
        build()(args=arguments, prog_name="lockstep")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else exit_codes.FAILED if end.code else exit_codes.OK
    except LockstepError as error:
        say(f"lockstep: {error!s}")
        if isinstance(error, JobFailed) and error.job.error is not None and error.job.error.traceback:
            say(f"see where with: lockstep describe {error.job.job_id}")
        return exit_codes.of(error)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except OSError as error:
        if error.errno == errno.EPIPE or _wants_tracebacks():
            raise
        where = f"{error.filename}: " if error.filename else ""
        say(f"lockstep: {where}{error.strerror or error}")
        return exit_codes.FAILED
    except Exception as error:
        if _wants_tracebacks():
            raise
        message = f"lockstep: internal error: {type(error).__name__}: {error}\nSet LOCKSTEP_DEBUG=1 to see where."
        say(message)
        return exit_codes.FAILED
    return exit_codes.OK


def _wants_tracebacks() -> bool:
    return bool(os.environ.get("LOCKSTEP_DEBUG"))
