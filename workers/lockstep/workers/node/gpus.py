"""GPUs as NVML tells of them. Each figure is asked for on its own, and what a GPU does not tell is left unset."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pynvml
import structlog

from lockstep.v1.telemetry_pb2 import GpuTelemetry
from lockstep.workers.node.gpm import Gpm

LOOK_AGAIN_S = 60.0
"""How long after no driver, or not every GPU, was there it is looked for again."""
MOST_EVENTS = 100
"""Events of a GPU that one sample counts; the rest waits for the next."""

THROTTLE_REASONS = {
    pynvml.nvmlClocksEventReasonApplicationsClocksSetting: "applications_clocks_setting",
    pynvml.nvmlClocksEventReasonSwPowerCap: "sw_power_cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hw_slowdown",
    pynvml.nvmlClocksEventReasonSyncBoost: "sync_boost",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "sw_thermal_slowdown",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hw_thermal_slowdown",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "hw_power_brake_slowdown",
    pynvml.nvmlClocksEventReasonDisplayClockSetting: "display_clock_setting",
    pynvml.nvmlClocksThrottleReasonBoardLimit: "board_limit",
    pynvml.nvmlClocksThrottleReasonReliability: "reliability",
}
"""Names of the bits that say why clocks are low; idleness is left out."""

log = structlog.get_logger()
T = TypeVar("T")


class Gpus:
    """All GPUs of this machine. A driver that comes later is found, and one that goes away is waited for.

    Args:
        now: tells the time, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._gpus: dict[int, Gpu] = {}
        self._xid_errors: dict[str, XidErrors] = {}
        self._has_driver = False
        self._count = 0
        self._look_at = now()

    def sample(self) -> list[GpuTelemetry]:
        """Measure all of them, in the order of their numbers; none without a driver."""
        if self._now() >= self._look_at:
            self._look()
        told = [gpu.sample(self._now()) for _, gpu in sorted(self._gpus.items())]
        if not any(gpu.answers for gpu in self._gpus.values()) and self._gpus and self._driver_is_gone():
            self._close()
        return told

    def _look(self) -> None:
        if self._has_driver and len(self._gpus) == self._count:
            return
        self._look_at = self._now() + LOOK_AGAIN_S
        try:
            if not self._has_driver:
                pynvml.nvmlInit()
                self._has_driver = True
            self._count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            log.debug("no GPUs", error=str(error))
            return
        for index in range(self._count):
            if index not in self._gpus:
                with contextlib.suppress(pynvml.NVMLError):  # one that is broken; the others are there
                    self._gpus[index] = Gpu(index, self._xid_errors)
        log.info("GPUs", count=self._count, usable=len(self._gpus))

    def _driver_is_gone(self) -> bool:
        """Whether not only the GPUs do not answer: lost ones are told as such, with their XID errors."""
        return _told(pynvml.nvmlDeviceGetCount) is None

    def _close(self) -> None:
        """Let go of the driver, and look for it later."""
        for gpu in self._gpus.values():
            gpu.close()
        _told(pynvml.nvmlShutdown)
        self._gpus, self._has_driver, self._count = {}, False, 0
        self._look_at = self._now() + LOOK_AGAIN_S
        log.warning("the GPUs' driver is gone")


@dataclass
class XidErrors:
    """XID errors of one GPU, by code.

    Attributes:
        counts: how many there were.
        newest: when the newest was seen, in the seconds of the clock that `Gpus` has.
    """

    counts: Counter[int] = field(default_factory=Counter)
    newest: dict[int, float] = field(default_factory=dict)


class Gpu:
    """One GPU.

    Args:
        index: its number, as NVML counts.
        xid_errors: its XID errors by its UUID, kept beyond this object's life.

    Attributes:
        answers: it has told something the last time.

    Raises:
        NVMLError: it cannot be used.
    """

    def __init__(self, index: int, xid_errors: dict[str, XidErrors]) -> None:
        self.answers = True
        self._index = index
        self._device = pynvml.nvmlDeviceGetHandleByIndex(index)
        self._uuid: str = pynvml.nvmlDeviceGetUUID(self._device)
        self._name = _told(pynvml.nvmlDeviceGetName, self._device) or ""
        self._gpm = _told(Gpm, self._device)
        self._xid_errors = xid_errors.setdefault(self._uuid, XidErrors())
        # One set for each GPU: where one is lost, waiting fails for all of a set.
        self._events = _told(self._watch_for_xid_errors)

    def sample(self, now: float) -> GpuTelemetry:
        """Measure at `now`, in seconds; a GPU that is lost has a number, a name and its XID errors, no figures."""
        device = self._device
        figures: dict[str, Any] = {
            **self._memory(),
            **self._utilization(),
            "power_watts": _scaled(1e-3, pynvml.nvmlDeviceGetPowerUsage, device),
            "power_limit_watts": _scaled(1e-3, pynvml.nvmlDeviceGetEnforcedPowerLimit, device),
            "energy_joules_total": _scaled(1e-3, pynvml.nvmlDeviceGetTotalEnergyConsumption, device),
            "temperature_celsius": self._temperature(),
            "sm_clock_hertz": _scaled(1e6, pynvml.nvmlDeviceGetClockInfo, device, pynvml.NVML_CLOCK_SM),
            "sm_clock_max_hertz": _scaled(1e6, pynvml.nvmlDeviceGetMaxClockInfo, device, pynvml.NVML_CLOCK_SM),
            "memory_clock_hertz": _scaled(1e6, pynvml.nvmlDeviceGetClockInfo, device, pynvml.NVML_CLOCK_MEM),
        }
        if self._gpm is not None:
            figures |= _told(self._gpm.ratios) or {}
        known = {name: figure for name, figure in figures.items() if figure is not None}
        reasons = self._throttle_reasons()
        self._count_xid_errors(now)
        self.answers = bool(known)
        return GpuTelemetry(
            index=self._index,
            uuid=self._uuid,
            name=self._name,
            throttle_reasons=[name for bit, name in THROTTLE_REASONS.items() if (reasons or 0) & bit],
            knows_throttle_reasons=reasons is not None,
            xid_errors=self._xid_errors.counts,
            knows_xid_errors=self._events is not None,
            xid_error_ages_s={code: now - newest for code, newest in self._xid_errors.newest.items()},
            **known,
        )

    def _memory(self) -> dict[str, int]:
        # The second version does not count what the driver keeps for itself as used.
        memory = _told(pynvml.nvmlDeviceGetMemoryInfo, self._device, pynvml.nvmlMemory_v2)
        memory = memory or _told(pynvml.nvmlDeviceGetMemoryInfo, self._device)
        return {"memory_total_bytes": memory.total, "memory_used_bytes": memory.used} if memory else {}

    def _utilization(self) -> dict[str, float]:
        rates = _told(pynvml.nvmlDeviceGetUtilizationRates, self._device)
        if rates is None:
            return {}
        return {
            "utilization_ratio": min(1.0, rates.gpu / 100),
            "memory_utilization_ratio": min(1.0, rates.memory / 100),
        }

    def _temperature(self) -> float | None:
        sensor = pynvml.NVML_TEMPERATURE_GPU
        celsius = _scaled(1, pynvml.nvmlDeviceGetTemperatureV, self._device, sensor)
        return _scaled(1, pynvml.nvmlDeviceGetTemperature, self._device, sensor) if celsius is None else celsius

    def _throttle_reasons(self) -> int | None:
        reasons: int | None = _told(pynvml.nvmlDeviceGetCurrentClocksEventReasons, self._device)
        if reasons is None:  # an older driver
            reasons = _told(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, self._device)
        return reasons

    def _watch_for_xid_errors(self) -> Any:
        xid = pynvml.nvmlEventTypeXidCriticalError
        if not pynvml.nvmlDeviceGetSupportedEventTypes(self._device) & xid:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        events = pynvml.nvmlEventSetCreate()
        try:
            pynvml.nvmlDeviceRegisterEvents(self._device, xid, events)
        except pynvml.NVMLError:
            _told(pynvml.nvmlEventSetFree, events)
            raise
        return events

    def _count_xid_errors(self, now: float) -> None:
        if self._events is None:
            return
        for _ in range(MOST_EVENTS):
            event = _told(pynvml.nvmlEventSetWait, self._events, 0)
            if event is None:
                return
            if event.eventType & pynvml.nvmlEventTypeXidCriticalError:
                code = event.eventData & 0x7FFF_FFFF
                self._xid_errors.counts[code] += 1
                self._xid_errors.newest[code] = now

    def close(self) -> None:
        """Free what NVML holds for it."""
        if self._events is not None:
            _told(pynvml.nvmlEventSetFree, self._events)
        if self._gpm is not None:
            _told(self._gpm.close)


def _told(call: Callable[..., T], *arguments: Any) -> T | None:
    """What a call of NVML returns; None when it fails, as those do that a GPU or its driver does not know."""
    try:
        return call(*arguments)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def _scaled(factor: float, call: Callable[..., float], *arguments: Any) -> float | None:
    number = _told(call, *arguments)
    return None if number is None else factor * number
