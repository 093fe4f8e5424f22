"""The environment of the processes that the server starts, and what must not come into it from its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import structlog

# What an embedded Ray must not have from whoever started the server: it would join or ask another cluster, run code of
# theirs in every process, or take another token than ours.
_OF_ANOTHER_CLUSTER = frozenset(
    {
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_TOKEN",
        "RAY_CLOUD_INSTANCE_ID",
        "RAY_ENABLE_GCS_LEADER_ELECTION",
        "RAY_GCS_SERVER_PORT",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        "RAY_JOB_HEADERS",
        "RAY_JOB_SUBMIT_HOOK",
        "RAY_NAMESPACE",
        "RAY_NODE_TYPE_NAME",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING",
        "RAY_RAYLET_PID",
        "RAY_REDIS_ADDRESS",
        "RAY_RUNTIME_ENV_HOOK",
        "RAY_TMPDIR",
        "RAY_preload_python_modules",
    }
)
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_NO_PROXY = ("no_proxy", "NO_PROXY")
# gRPC looks at this one alone where it is set.
_NO_GRPC_PROXY = "no_grpc_proxy"

log = structlog.get_logger(__name__)


def of_children(environment: Mapping[str, str], address: str = "") -> dict[str, str]:
    """Return an environment for processes that run in another folder than this one, and call this server.

    Args:
        environment: of this process.
        address: host:port where this server is called; no proxy is asked for it, nor for the loopback.
    """
    hosts = [*_LOOPBACK_HOSTS]
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if host and host not in hosts:
        hosts.append(host)
    result = dict(environment)
    for name in (*_NO_PROXY, *([_NO_GRPC_PROXY] if _NO_GRPC_PROXY in environment else [])):
        given = [part.strip() for part in environment.get(name, "").split(",") if part.strip()]
        result[name] = ",".join([*given, *(host for host in hosts if host not in given)])
    if "PYTHONPATH" in environment:
        result["PYTHONPATH"] = _module_path(environment["PYTHONPATH"])
    return result


def _module_path(given: str) -> str:
    """Have relative parts mean the same in any folder; an empty one, mostly a colon too many, is the folder itself."""
    return os.pathsep.join(str(Path(part).absolute()) for part in given.split(os.pathsep) if part)


def environment_of_embedded(token_path: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every process that belongs to or speaks with the embedded Ray."""
    kept = {name: value for name, value in of_children(environment).items() if name not in _OF_ANOTHER_CLUSTER}
    return kept | {
        "RAY_AUTH_MODE": "token",
        TOKEN_PATH: str(token_path.resolve()),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # Ray's way to say that a cluster has this one machine: it then takes the loopback for its address and binds
        # to nothing else. Otherwise it makes the outward address of 127.0.0.1, and listens everywhere.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def made_of() -> dict[str, str]:
    """Return what decides which code the workers of an embedded Ray run, by what it is called in messages."""
    workers = importlib.util.find_spec("lockstep.workers")
    return {
        "python": f"{sys.executable} {sys.version}",
        "PYTHONPATH": _module_path(os.environ.get("PYTHONPATH", "")),
        "ray": _version("ray"),
        "lockstep": f"{_version('lockstep-train')} {workers.origin if workers is not None else ''}",
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
