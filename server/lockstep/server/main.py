"""`lockstep serve`: this very process is the coordinator."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer

from lockstep.server import logging
from lockstep.server.application import Application
from lockstep.server.process import children
from lockstep.server.settings import Settings, StartupError, load

EXIT_USAGE = 2
EXIT_FORCED = 130

log = structlog.get_logger(__name__)

# The options of `serve`.
Listen = Annotated[
    str | None, typer.Option(help="gRPC address, host:port; port 0 takes a free one. Default: 127.0.0.1:50051.")
]
Http = Annotated[str | None, typer.Option(help="Address of /metrics and /healthz. Default: 127.0.0.1:50052.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the store and the logs. Default: ./lockstep-data.")]
RayAddress = Annotated[str | None, typer.Option(help="Ray cluster to run on, host:port. Default: start one here.")]
NumCpus = Annotated[int | None, typer.Option(help="CPUs of the embedded Ray. Default: all.")]
NumGpus = Annotated[int | None, typer.Option(help="GPUs of the embedded Ray. Default: all.")]
AdvertiseAddress = Annotated[
    str | None, typer.Option(help="Where workers reach this server, host:port. Default: the gRPC address.")
]
LauncherTimeoutS = Annotated[
    float | None, typer.Option(help="Seconds that the launcher may say nothing before it is replaced. Default: 30.")
]
WarmTtlS = Annotated[
    float | None,
    typer.Option(help="Seconds that a worker that is done waits for the next job; 0: none does. Default: 600."),
]
WarmWorkers = Annotated[
    int | None, typer.Option(help="Workers kept ready for whoever comes next, where there is room. Default: 1.")
]
WarmMemoryBytes = Annotated[
    int | None, typer.Option(help="Most memory that a worker may take while it waits. Default: 4 GiB.")
]
DataCacheBytes = Annotated[
    int | None, typer.Option(help="Most data that a worker keeps in memory for the next job. Default: 1 GiB.")
]
LogBytesPerJob = Annotated[
    int | None, typer.Option(help="Most disk that the log of one job takes, at least 1 MiB. Default: 64 MiB.")
]
PointsPerJob = Annotated[
    int | None, typer.Option(help="Most metric points that a job may make, of 200 bytes. Default: 100,000,000.")
]
KeepDays = Annotated[
    float | None, typer.Option(help="Days after its end after which a job is deleted. Default: never.")
]
GpuJobMappingDir = Annotated[
    Path | None,
    typer.Option(help="Folder on each node to write which jobs use which GPU, for dcgm-exporter. Default: none."),
]
CheckpointRoots = Annotated[
    str | None,
    typer.Option(
        help="Folders, as absolute paths or URIs with commas between them, below which jobs may keep and read "
        "checkpoints besides the data folder. Default: any."
    ),
]
LogFormat = Annotated[str | None, typer.Option(help="console or json. Default: console.")]


def serve(
    listen: Listen = None,
    http: Http = None,
    data_dir: DataDir = None,
    ray_address: RayAddress = None,
    num_cpus: NumCpus = None,
    num_gpus: NumGpus = None,
    advertise_address: AdvertiseAddress = None,
    launcher_timeout_s: LauncherTimeoutS = None,
    warm_ttl_s: WarmTtlS = None,
    warm_workers: WarmWorkers = None,
    warm_memory_bytes: WarmMemoryBytes = None,
    data_cache_bytes: DataCacheBytes = None,
    log_bytes_per_job: LogBytesPerJob = None,
    points_per_job: PointsPerJob = None,
    keep_days: KeepDays = None,
    gpu_job_mapping_dir: GpuJobMappingDir = None,
    checkpoint_roots: CheckpointRoots = None,
    log_format: LogFormat = None,
) -> None:
    """Run the server, until SIGTERM, Ctrl-C or the end of its terminal; a second of the first two forces it to end.

    Every option can also be set by a variable: LOCKSTEP_ and its name, such as LOCKSTEP_DATA_DIR.
    """
    logging.open_closed_streams()
    try:
        settings = load(
            listen=listen,
            http=http,
            data_dir=data_dir,
            ray_address=ray_address,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            advertise_address=advertise_address,
            launcher_timeout_s=launcher_timeout_s,
            warm_ttl_s=warm_ttl_s,
            warm_workers=warm_workers,
            warm_memory_bytes=warm_memory_bytes,
            data_cache_bytes=data_cache_bytes,
            log_bytes_per_job=log_bytes_per_job,
            points_per_job=points_per_job,
            keep_days=keep_days,
            gpu_job_mapping_dir=gpu_job_mapping_dir,
            checkpoint_roots=checkpoint_roots,
            log_format=log_format,
        )
        logging.configure(settings.log_format)
        asyncio.run(_serve(settings))
    except StartupError as error:
        sys.stderr.write(f"lockstep serve: {error}\n")
        raise typer.Exit(EXIT_USAGE) from error


async def _serve(settings: Settings) -> None:
    application = Application(settings)
    stop, is_forced_next = asyncio.Event(), False

    def on_signal(number: signal.Signals) -> None:
        nonlocal is_forced_next
        # SIGHUP comes along with others, from a supervisor or the end of a terminal, and of those that come at once it
        # is the first to arrive, whichever was sent first.
        if number is not signal.SIGHUP:
            if is_forced_next:
                application.kill()
                os._exit(EXIT_FORCED)
            is_forced_next = True
        if not stop.is_set():
            log.info("shutting down; once more to force it")
            stop.set()

    loop = asyncio.get_running_loop()
    for number in children.ENDING_SIGNALS:
        # With nohup it is ignored, so that the server outlives its terminal.
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal, number)
    # Whoever has started this process may have had them blocked, and that is inherited.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, children.ENDING_SIGNALS)
    await application.start()
    try:
        await stop.wait()
    finally:
        if not await application.stop():
            os._exit(EXIT_FORCED)  # otherwise Python waits for the threads that hang
    log.info("stopped")


def main() -> None:
    """Run `serve` without the rest of the command line."""
    # Forking is never done here, and gRPC's handlers for it cost every call.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    typer.run(serve)


if __name__ == "__main__":
    main()
