"""A sample of a node's agent, checked."""

from __future__ import annotations

import math
import re

from google.protobuf.message import Message

from lockstep.contract.spec.values import show
from lockstep.server.errors import InvalidRequest
from lockstep.v1.internal_service_pb2 import ReportNodeRequest
from lockstep.v1.telemetry_pb2 import GpuTelemetry

_MAX_GPUS = 256
_MAX_NAME = 128
_MAX_REASONS = 32
_MAX_XIDS = 1_000
_REASON = re.compile("[a-z][a-z0-9_]{0,63}")
# What can be below zero.
_SIGNED = frozenset({"temperature_celsius"})


def check_node_report(request: ReportNodeRequest) -> None:
    """Check what an agent says of its node.

    Raises:
        InvalidRequest: it is not what an agent of ours sends; nothing of it is taken.
    """
    if not 0 < len(request.node_id) <= _MAX_NAME:
        raise InvalidRequest.of("node_id", f"has {len(request.node_id)} characters; allowed: 1 to {_MAX_NAME}")
    telemetry = request.telemetry
    _check_figures("telemetry.host", telemetry.host)
    if len(telemetry.gpus) > _MAX_GPUS:
        raise InvalidRequest.of("telemetry.gpus", f"has {len(telemetry.gpus):,} items; allowed: at most {_MAX_GPUS}")
    for field in ("index", "uuid"):
        if len({getattr(gpu, field) for gpu in telemetry.gpus}) < len(telemetry.gpus):
            raise InvalidRequest.of("telemetry.gpus", f"names the same {field} twice")
    for number, gpu in enumerate(telemetry.gpus):
        _check_gpu(f"telemetry.gpus[{number}]", gpu)


def _check_gpu(field: str, gpu: GpuTelemetry) -> None:
    _check_figures(field, gpu)
    for name, least in (("uuid", 1), ("name", 0)):
        text = getattr(gpu, name)
        if not least <= len(text) <= _MAX_NAME or not text.isprintable():
            allowed = f"{least} to {_MAX_NAME} printable characters"
            raise InvalidRequest.of(f"{field}.{name}", f"is {show(text)}; allowed: {allowed}")
    if len(gpu.throttle_reasons) > _MAX_REASONS:
        raise InvalidRequest.of(f"{field}.throttle_reasons", f"has more than {_MAX_REASONS} items")
    for reason in gpu.throttle_reasons:
        if not _REASON.fullmatch(reason):
            allowed = "small letters, digits and _"
            raise InvalidRequest.of(f"{field}.throttle_reasons", f"holds {show(reason)}; allowed: {allowed}")
    if len(gpu.xid_errors) > _MAX_XIDS:
        raise InvalidRequest.of(f"{field}.xid_errors", f"has more than {_MAX_XIDS:,} items")
    if any(code < 0 or count < 0 for code, count in gpu.xid_errors.items()):
        raise InvalidRequest.of(f"{field}.xid_errors", "has a code or a count below 0")
    if unknown := set(gpu.xid_error_ages_s) - set(gpu.xid_errors):
        raise InvalidRequest.of(f"{field}.xid_error_ages_s", f"has code {min(unknown)}, which xid_errors has not")
    for code, age in gpu.xid_error_ages_s.items():
        if not 0 <= age < math.inf:
            raise InvalidRequest.of(f"{field}.xid_error_ages_s[{code}]", f"is {age}; allowed: 0 or greater")


def _check_figures(field: str, measured: Message) -> None:
    """Check the numbers of a message by their names: a ratio is a share, and only a temperature can be negative."""
    for descriptor, value in measured.ListFields():
        if not isinstance(value, (int, float)):
            continue
        name = descriptor.name
        most = 1.0 if name.endswith("_ratio") else math.inf
        if not math.isfinite(value) or value > most or (value < 0 and name not in _SIGNED):
            allowed = "0 to 1" if most == 1.0 else "a finite number" if name in _SIGNED else "0 or greater"
            raise InvalidRequest.of(f"{field}.{name}", f"is {value}; allowed: {allowed}")
