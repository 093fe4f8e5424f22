"""The command `top`: the cluster and its jobs on one screen, as they are now."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from lockstep.client.cli import exit_codes, output
from lockstep.client.cli.connect import client_of
from lockstep.client.errors import LockstepError
from lockstep.client.types import JobState

if TYPE_CHECKING:
    from lockstep.client.cli.top_screen import View
    from lockstep.client.client import Client
    from lockstep.client.ledger import Ledger

MOST_JOBS = 30
"""Jobs that are shown; those that run come first."""
_SHOWN = (JobState.RUNNING, JobState.STARTING, JobState.PAUSING, JobState.CANCELLING, JobState.QUEUED)


def add_to(app: typer.Typer) -> None:
    app.command("top")(top)


def top(
    context: typer.Context,
    interval: Annotated[
        float, typer.Option("--interval", "-i", metavar="S", min=0.2, help="Seconds between looks.")
    ] = 2,
    once: Annotated[
        bool, typer.Option("--once", help="Print one screen and end; so it does without a terminal.")
    ] = False,
) -> None:
    """Show the cluster and its jobs, live.

    Nodes, GPUs or CPUs with who uses them, jobs, their speed and where their time goes. Ctrl-C ends it.
    """
    with client_of(context) as client:
        watcher = Watcher(client)
        if once or not sys.stdout.isatty():
            from lockstep.client.cli.top_screen import screen

            output.console().print(screen(watcher.look()))
            return
        try:
            _run(watcher, interval)
        except KeyboardInterrupt:
            raise typer.Exit(exit_codes.OK) from None


def _run(watcher: Watcher, interval: float) -> None:
    from rich.live import Live

    from lockstep.client.cli.top_screen import screen

    view = watcher.look()
    with Live(screen(view), console=output.console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(view), refresh=True)
            time.sleep(interval)
            try:
                view = watcher.look()
            except LockstepError as error:  # the server may be back soon
                view = view.stale(str(error))


class Watcher:
    """Looks at a server again and again.

    Args:
        client: asks it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ledgers: dict[str, list[Ledger]] = {}

    def look(self) -> View:
        """Read everything that is on the screen.

        Raises:
            LockstepError: the server does not answer.
        """
        from lockstep.client.cli.top_screen import JobView, View

        client = self._client
        jobs = [job for state in _SHOWN for job in client.list_jobs(states=[state], limit=MOST_JOBS)][:MOST_JOBS]
        running = [job for job in jobs if job.attempt]
        self._ledgers = {job.job_id: self._ledgers.get(job.job_id, []) for job in running}
        for job in running:
            ledger = job.ledger()
            known = self._ledgers[job.job_id]
            if not known or known[-1] != ledger:  # workers tell every few seconds
                self._ledgers[job.job_id] = [*known[-1:], ledger]
        views = tuple(JobView(job, tuple(self._ledgers.get(job.job_id, ()))) for job in jobs)
        return View(client.target, client.get_cluster(), tuple(client.list_nodes()), views)
