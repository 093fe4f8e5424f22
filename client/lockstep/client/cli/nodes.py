"""The command `nodes`: what the cluster has and does, what runs where and what is warm."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from lockstep.client.cli import output
from lockstep.client.cli.connect import client_of
from lockstep.client.cli.telemetry import telemetry_lines
from lockstep.client.cluster import Cluster, Node, Worker, WorkerState
from lockstep.contract.wording import count, part_of


def add_to(app: typer.Typer) -> None:
    app.command()(nodes)


def nodes(
    context: typer.Context,
    form: Annotated[
        output.TableOrJson, typer.Option("--output", "-o", help=output.HELP_OF_FORMS)
    ] = output.TableOrJson.table,
) -> None:
    """Show the nodes and what runs where.

    What they have and do, the worker processes on them, and which of these are warm: those wait for the next job.
    """
    with client_of(context) as client:
        cluster, found = client.get_cluster(), client.list_nodes()
    if form is output.TableOrJson.json:
        output.write_json({"cluster": dataclasses.asdict(cluster), "nodes": [_plain_data(node) for node in found]})
    else:
        _print(cluster, found)


def _plain_data(node: Node) -> dict[str, Any]:
    data = dataclasses.asdict(node)
    for worker in data["workers"]:
        if worker["idle_since"] is not None:
            worker["idle_since"] = worker["idle_since"].isoformat()
    if data["telemetry"] is not None:
        data["telemetry"]["receive_time"] = data["telemetry"]["receive_time"].isoformat()
    return data


def _print(cluster: Cluster, nodes: Sequence[Node]) -> None:
    from rich.text import Text

    console = output.console()
    console.print(_describe_cluster(cluster), soft_wrap=True)
    for node in sorted(nodes, key=lambda node: (node.name, node.node_id)):
        console.print()
        console.print(Text(node.name or node.node_id, style="bold"), soft_wrap=True)
        console.print(f"  {_describe_use(node)}", soft_wrap=True)
        for line in telemetry_lines(node):
            console.print(f"  {line}", soft_wrap=True)
        for worker in node.workers:
            console.print(f"  {_describe_worker(worker)}", soft_wrap=True)


def _describe_cluster(cluster: Cluster) -> str:
    jobs = f"{count(cluster.jobs_running, 'job')} running, {cluster.jobs_waiting} waiting"
    there = f"{count(cluster.nodes, 'node')}, {jobs}"
    return there if cluster.is_ready else f"not ready: {cluster.not_ready_reason}\n{there}"


def _describe_use(node: Node) -> str:
    """Such as "3 of 4 CPUs held by jobs, 1 warm"."""
    parts = []
    for kind in ("cpus", "gpus"):
        total, usable, held, warm = (
            getattr(resources, kind)
            for resources in (node.total, node.usable, node.held_by_jobs, node.held_by_warm_workers)
        )
        if not total:
            continue
        part = f"{part_of(held, usable, kind[:-1].upper())} held by jobs"
        starting = sum(
            getattr(worker.resources, kind) for worker in node.workers if worker.state is WorkerState.WARMING_UP
        )
        warm = max(0.0, round(warm - starting, 6))
        part += f", {warm:g} warm" if warm else ""
        part += f", {starting:g} warming up" if starting else ""
        part += f", {total - usable:g} more held by others" if total > usable else ""
        parts.append(part)
    return "; ".join(parts) or "no CPUs"


def _describe_worker(worker: Worker) -> str:
    state = worker.state.lower().replace("_", " ")
    rank = "" if worker.rank is None else f", rank {worker.rank}"
    what = f"{worker.job_id} worker {worker.number}{rank}" if worker.job_id else state
    facts = [f"{what} (pid {worker.pid})" if worker.pid else what]
    if worker.state is WorkerState.STARTING:
        facts.append(state)
    facts += [
        count(number, noun)
        for number, noun in ((worker.resources.cpus, "CPU"), (worker.resources.gpus, "GPU"))
        if number
    ]
    if worker.state is WorkerState.WARM and worker.idle_since is not None:
        idle_s = (datetime.now(UTC) - worker.idle_since).total_seconds()  # by two clocks
        facts.append(f"idle for {output.duration(max(0.0, idle_s))}")
        facts += [output.size(worker.memory_bytes)] if worker.memory_bytes else []
        facts += [f"data {output.size(worker.data_bytes)}"] if worker.data_bytes else []
    return ", ".join(facts)
