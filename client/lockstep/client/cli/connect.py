"""What every command that talks to a server starts with."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from lockstep.client._printable import printable
from lockstep.client.client import Client
from lockstep.client.errors import LockstepError
from lockstep.client.job import Job
from lockstep.v1.job_spec_pb2 import JobSpec

_USUAL_SHARDS = 4

_MOST_OFFERED = 100


@dataclass(frozen=True)
class Connect:
    """The global options."""

    target: str | None


def client_of(context: typer.Context) -> Client:
    """A client of the server that the command line names."""
    options = context.find_object(Connect) or Connect(None)
    return Client(options.target)


def complete_job(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The ids of jobs that begin so, each with what it is, for a shell that completes a command."""
    try:
        with Client(context.find_root().params.get("target")) as client:
            jobs = client._newest_jobs(incomplete, _MOST_OFFERED)
    except LockstepError:
        return []
    return [(job.job_id, f"{job.name}, {job.state.lower()}") for job in jobs]


def say(message: str) -> None:
    """Say something to the person: on standard error, never among the data."""
    typer.echo(printable(message), err=True)


def say_if_short(client: Client, job: Job) -> None:
    """Say so when the whole cluster has room for fewer workers than a job wants; it runs with what there is."""
    resources = job.spec.resources
    try:
        room = sum(node.room_for(resources) for node in client.list_nodes())
    except LockstepError:  # this is a remark; the command itself has succeeded
        return
    if max(1, resources.min_workers) <= room < resources.workers:
        short = f"the cluster has room for {room} of the {resources.workers} workers"
        if job.running_workers:
            say(f"{short}: the job runs with at most {room} until it has more")
        else:  # others may be before it, or hold a part of that room
            say(f"{short}: once it is its turn, the job starts with at most {room}; others join when there is room")


def say_if_shards_follow(submitted: JobSpec, resolved: JobSpec) -> None:
    """Say how many shards a job has when nobody has said it and it is not the usual number: the curve depends on it."""
    shards, workers = resolved.resources.shards, resolved.resources.workers
    if submitted.resources.shards or shards in (0, _USUAL_SHARDS):
        return
    if resolved.resources.gpus_per_worker and shards == workers:
        why = "as many as workers, which is the fastest on GPUs; the job can grow to no more"
    elif shards > _USUAL_SHARDS:
        why = f"since {workers} workers need as many"
    else:
        why = "as many as a batch has examples"
    say(
        f"resources.shards is {shards}, {why}; it is part of the curve: set it to compare runs of different numbers of "
        "workers"
    )
