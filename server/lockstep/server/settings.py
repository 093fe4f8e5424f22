"""What can be set, from the command line or from LOCKSTEP_* variables."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lockstep.contract.spec.values import FOLDER_LIMITS, is_folder
from lockstep.server.spec.rules import DEFAULT_POINTS_PER_JOB
from lockstep.v1.launcher_pb2 import LauncherOptions

_HOST_AND_PORT = re.compile(r"\S+:[0-9]{1,5}")


class StartupError(Exception):
    """The server cannot start, for a reason that its user can mend."""


class Settings(BaseSettings):
    """The server's settings; what is given to the constructor wins over the environment.

    Attributes:
        listen: gRPC address, host:port on the loopback; port 0 takes a free one.
        http: address of /metrics and /healthz, likewise.
        data_dir: folder of the store and of everything else that is kept.
        ray_address: Ray cluster to run on; None starts one here.
        num_cpus: CPUs of the embedded Ray; None takes all.
        num_gpus: GPUs of the embedded Ray; None takes all.
        advertise_address: where workers reach this server, host:port; None is the address it listens on.
        launcher_timeout_s: seconds that the launcher's process may say nothing before it is replaced.
        warm_ttl_s: seconds that a worker waits for the next job of its owner when one is done; 0 ends it at once.
        warm_workers: workers that are kept ready for whoever comes next, where there is room.
        warm_memory_bytes: the most memory that a worker may take while it waits; one that takes more is ended.
        data_cache_bytes: the most that data takes which a worker keeps for the next job.
        log_bytes_per_job: the most that the log of one job takes on disk; the oldest lines go first.
        points_per_job: the most points that a job may make, by its spec; each takes about 200 bytes in the store.
        keep_days: days after its end after which a job is deleted from the store, with its log; None keeps all.
        gpu_job_mapping_dir: folder on each node where its agent writes which jobs use which GPU, for NVIDIA's
            dcgm-exporter; an absolute path; None writes nothing.
        checkpoint_roots: folders, as absolute paths or URIs, below which jobs may keep and read checkpoints besides
            the data folder; None for any.
        log_format: for people ("console") or for programs ("json").
    """

    model_config = SettingsConfigDict(env_prefix="LOCKSTEP_", env_ignore_empty=True, extra="ignore")

    listen: str = "127.0.0.1:50051"
    http: str = "127.0.0.1:50052"
    data_dir: Path = Path("lockstep-data")
    ray_address: str | None = None
    num_cpus: int | None = Field(default=None, ge=1, le=100_000)
    num_gpus: int | None = Field(default=None, ge=0, le=10_000)
    advertise_address: str | None = None
    launcher_timeout_s: float = Field(default=30.0, ge=3.0, le=3600.0)
    warm_ttl_s: float = Field(default=600.0, ge=0.0, le=1e9)
    warm_workers: int = Field(default=1, ge=0, le=10_000)
    warm_memory_bytes: int = Field(default=4 << 30, ge=0, lt=1 << 63)
    data_cache_bytes: int = Field(default=1 << 30, ge=0, lt=1 << 63)
    log_bytes_per_job: int = Field(default=64 << 20, ge=1 << 20)
    points_per_job: int = Field(default=DEFAULT_POINTS_PER_JOB, ge=1_000)
    keep_days: float | None = Field(default=None, gt=0.0, le=100_000.0)
    gpu_job_mapping_dir: Path | None = None
    checkpoint_roots: Annotated[tuple[str, ...] | None, NoDecode] = None
    log_format: Literal["console", "json"] = "console"

    def launcher_options(self) -> LauncherOptions:
        """Say what launcher, agents and workers heed of them."""
        options = LauncherOptions()
        for field in options.DESCRIPTOR.fields:
            value = getattr(self, field.name)
            if value is not None:
                setattr(options, field.name, str(value) if isinstance(value, Path) else value)
        return options

    @field_validator("checkpoint_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return [part for part in value.split(",") if part] if isinstance(value, str) else value


def load(**given: object) -> Settings:
    """Join what the command line gave (None: not given) with the environment.

    Raises:
        StartupError: a value is not allowed; it names the option.
    """
    try:
        settings = Settings(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        problems = [
            f"--{'-'.join(str(part) for part in problem['loc']).replace('_', '-')} is {problem['input']!r}: "
            f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
            for problem in error.errors()
        ]
        raise StartupError("; ".join(problems)) from error
    if settings.ray_address and (settings.num_cpus is not None or settings.num_gpus is not None):
        raise StartupError("--num-cpus and --num-gpus are for the embedded Ray; leave them out with --ray-address")
    if settings.gpu_job_mapping_dir is not None and not settings.gpu_job_mapping_dir.is_absolute():
        raise StartupError(
            f"--gpu-job-mapping-dir is {str(settings.gpu_job_mapping_dir)!r}; allowed: an absolute path, such as "
            "/run/gpu-jobs, since it is a folder on each node"
        )
    for root in settings.checkpoint_roots or ():
        if not is_folder(root):
            raise StartupError(f"--checkpoint-roots names {root!r}; allowed: {FOLDER_LIMITS}")
    if settings.ray_address is not None and not _HOST_AND_PORT.fullmatch(settings.ray_address):
        raise StartupError(f"--ray-address is {settings.ray_address!r}; allowed: host:port, such as 10.0.0.1:6379")
    return settings


@dataclass(frozen=True)
class Address:
    """A host on the loopback, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def cannot_be_taken(self, why: str | None, option: str) -> StartupError:
        """Say why nobody can listen there, and which option gives another."""
        return StartupError(f"cannot listen on {self}: {why}; choose another with {option}")


def loopback_address(option: str, text: str) -> Address:
    """Read an address to listen on.

    Raises:
        StartupError: it is no address, or one that others could reach.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not _HOST_AND_PORT.fullmatch(text) or int(port) > 65535:
        raise StartupError(f"{option} is {text!r}; allowed: host:port, such as 127.0.0.1:50051")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise StartupError(
            f"{option} is {text!r}; allowed: loopback addresses only, such as 127.0.0.1:{port}, because this server "
            "has no authentication yet; to reach it from elsewhere use an SSH tunnel"
        )
    return Address(host, int(port))


def available_memory_bytes() -> int:
    """Count the memory that this process may use: that of the machine, or of its container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(machine, int(Path(path).read_text()))
        except (OSError, ValueError):  # no such limit
            continue
    return machine


def available_gpus() -> int:
    """Count the NVIDIA GPUs that this process may use, without any of NVIDIA's libraries."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    try:
        return sum(1 for path in Path("/dev").iterdir() if re.fullmatch(r"nvidia\d+", path.name))
    except OSError:
        return 0
