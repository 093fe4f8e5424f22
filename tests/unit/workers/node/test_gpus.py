"""What is told of GPUs, through the real package of NVML; the driver below it is played."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.v1.telemetry_pb2 import GpuTelemetry
from lockstep.workers.node.gpus import LOOK_AGAIN_S
from tests.support.nvml.fake import FakeDriver

NOT_SUPPORTED, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, UNKNOWN = 3, 9, 13, 999
GIB = 1 << 30


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[FakeDriver]:
    driver = FakeDriver(tmp_path / "driver")
    yield driver
    driver.close()


def busy(driver: FakeDriver) -> None:
    """Have one GPU, at work."""
    driver.set(gpus=1)
    driver.set_gpu(0, utilization=87, memory_utilization=40, power=512_500, power_limit=700_000, energy=9_000_000)
    driver.set_gpu(0, memory_total=140 * GIB, memory_used=41 * GIB, memory_reserved=GIB, temperature=64)
    driver.set_gpu(0, sm_clock=1500, sm_clock_max=1980, memory_clock=3201, reasons=0x4 | 0x40)


def test_a_gpu_is_told_with_all_its_figures(driver: FakeDriver) -> None:
    busy(driver)
    assert driver.sample() == [
        GpuTelemetry(
            index=0,
            uuid="GPU-abcdef00-1111-2222-3333-444455556666",
            name="NVIDIA H200",
            utilization_ratio=0.87,
            memory_utilization_ratio=0.4,
            memory_total_bytes=140 * GIB,
            memory_used_bytes=41 * GIB,
            power_watts=512.5,
            power_limit_watts=700,
            energy_joules_total=9000,
            temperature_celsius=64,
            sm_clock_hertz=1.5e9,
            sm_clock_max_hertz=1.98e9,
            memory_clock_hertz=3.201e9,
            throttle_reasons=["sw_power_cap", "hw_thermal_slowdown"],
            knows_throttle_reasons=True,
            knows_xid_errors=True,
        )
    ]


def test_what_a_gpu_does_not_tell_is_unset_and_the_rest_is_there(driver: FakeDriver) -> None:
    busy(driver)
    driver.set_gpu(0, nvmlDeviceGetUtilizationRates=NOT_SUPPORTED, nvmlDeviceGetPowerUsage=NOT_SUPPORTED)
    driver.set_gpu(0, nvmlDeviceGetTotalEnergyConsumption=UNKNOWN, events=0)
    driver.set_gpu(0, nvmlDeviceGetCurrentClocksEventReasons=3, nvmlDeviceGetCurrentClocksThrottleReasons=3)
    (gpu,) = driver.sample()
    for name in ("utilization_ratio", "memory_utilization_ratio", "power_watts", "energy_joules_total"):
        assert not gpu.HasField(name), name
    assert (gpu.knows_throttle_reasons, gpu.knows_xid_errors) == (False, False)
    assert (gpu.power_limit_watts, gpu.temperature_celsius) == (700, 64)


def test_an_older_driver_is_asked_in_the_older_way(driver: FakeDriver) -> None:
    busy(driver)
    for call in ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"):
        driver.set_gpu(0, **{call: FUNCTION_NOT_FOUND})
    (gpu,) = driver.sample()
    assert (gpu.memory_used_bytes, gpu.temperature_celsius) == (42 * GIB, 64), "the old call counts what is reserved"
    assert list(gpu.throttle_reasons) == ["sw_power_cap", "hw_thermal_slowdown"]


def test_an_idle_gpu_is_not_throttled(driver: FakeDriver) -> None:
    driver.set(gpus=1)
    driver.set_gpu(0, reasons=1)
    (gpu,) = driver.sample()
    assert (gpu.knows_throttle_reasons, list(gpu.throttle_reasons)) == (True, [])


def test_the_figures_of_hopper_are_means_between_two_samples(driver: FakeDriver) -> None:
    driver.set(gpus=2)
    driver.set_gpu(0, **{"has_gpm": 1, "gpm.time": 10, "gpm.2": 100, "gpm.3": 0, "gpm.5": 50, "gpm.10": 7})
    assert not driver.sample()[0].HasField("sm_active_ratio"), "there is nothing to compare the first one with"
    driver.set_gpu(0, **{"gpm.time": 12, "gpm.2": 101.5, "gpm.3": 0.5, "gpm.5": 51, "gpm.10": 7})
    gpu, older = driver.sample()
    told = (gpu.sm_active_ratio, gpu.sm_occupancy_ratio, gpu.tensor_active_ratio, gpu.memory_bandwidth_ratio)
    assert list(told) == [0.75, 0.25, 0.5, 0]
    assert gpu.HasField("memory_bandwidth_ratio")
    assert not older.HasField("sm_active_ratio")
    driver.set_gpu(0, **{"gpm.time": 14, "gpm.2": 102, "gpm.3": None, "gpm.10": 12})
    gpu = driver.sample()[0]
    assert gpu.sm_active_ratio == 0.25, "each mean begins where the one before has ended"
    assert not gpu.HasField("sm_occupancy_ratio"), "one figure that fails leaves the others"
    assert gpu.memory_bandwidth_ratio == 1, "never more than all"
    assert driver.sample()[0].HasField("sm_active_ratio") is False, "no time has passed: no mean"


def test_xid_errors_are_counted_by_code_and_by_gpu(driver: FakeDriver) -> None:
    driver.set(gpus=2)
    assert [dict(gpu.xid_errors) for gpu in driver.sample()] == [{}, {}]
    driver.set_gpu(1, **{"xid.0": 31, "xid.1": 48, "xid.2": 31})
    assert [dict(gpu.xid_errors) for gpu in driver.sample()] == [{}, {31: 2, 48: 1}]
    driver.set_gpu(1, **{"xid.3": 31})
    assert [dict(gpu.xid_errors) for gpu in driver.sample()] == [{}, {31: 3, 48: 1}]


def test_the_age_of_the_newest_xid_error_is_told_by_code(driver: FakeDriver) -> None:
    driver.set(gpus=1)
    driver.sample(0)
    driver.set_gpu(0, **{"xid.0": 31, "xid.1": 48})
    assert dict(driver.sample(10)[0].xid_error_ages_s) == {31: 0, 48: 0}
    driver.set_gpu(0, **{"xid.2": 31})
    assert dict(driver.sample(12)[0].xid_error_ages_s) == {31: 0, 48: 2}
    assert dict(driver.sample(20)[0].xid_error_ages_s) == {31: 8, 48: 10}


def test_a_gpu_that_falls_off_the_bus_hides_no_other(driver: FakeDriver) -> None:
    driver.set(gpus=3)
    for index in range(3):
        driver.set_gpu(index, temperature=50 + index)
    driver.sample()
    driver.set_gpu(1, **{"lost": 1, "xid.0": 79})
    first, lost, last = driver.sample()
    assert (first.temperature_celsius, last.temperature_celsius) == (50, 52)
    assert (lost.index, lost.name, dict(lost.xid_errors)) == (1, "NVIDIA H200", {79: 1})
    told = {field.name for field, _ in lost.ListFields()}
    assert told == {"index", "uuid", "name", "xid_errors", "xid_error_ages_s", "knows_xid_errors"}
    driver.set_gpu(2, **{"xid.0": 13})
    assert dict(driver.sample()[2].xid_errors) == {13: 1}


def test_the_only_gpu_is_told_as_lost_when_it_is(driver: FakeDriver) -> None:
    driver.set(gpus=1)
    driver.sample(0)
    driver.set_gpu(0, **{"lost": 1, "xid.0": 79})
    for time_s in (2, 2 * LOOK_AGAIN_S):
        (gpu,) = driver.sample(time_s)
        assert (gpu.HasField("temperature_celsius"), dict(gpu.xid_errors)) == (False, {79: 1})


def test_a_gpu_that_is_broken_from_the_begin_hides_no_other_and_is_told_when_it_is_mended(driver: FakeDriver) -> None:
    driver.set(gpus=2)
    driver.set_gpu(0, lost=1)
    assert [gpu.index for gpu in driver.sample(0)] == [1]
    driver.set_gpu(0, lost=0)
    assert [gpu.index for gpu in driver.sample(LOOK_AGAIN_S - 1)] == [1]
    assert [gpu.index for gpu in driver.sample(LOOK_AGAIN_S)] == [0, 1]


def test_a_driver_that_comes_later_is_found_and_asked_for_rarely(driver: FakeDriver) -> None:
    driver.set(gpus=1, init=DRIVER_NOT_LOADED)
    assert driver.sample(0) == []
    driver.set(init=None)
    assert driver.sample(LOOK_AGAIN_S - 1) == []
    assert len(driver.sample(LOOK_AGAIN_S)) == 1


def test_a_driver_that_goes_away_is_waited_for_and_xid_errors_are_counted_on(driver: FakeDriver) -> None:
    driver.set(gpus=1)
    driver.sample(0)
    driver.set_gpu(0, **{"xid.0": 62})
    assert dict(driver.sample(2)[0].xid_errors) == {62: 1}
    driver.set(gone=1)
    assert not driver.sample(LOOK_AGAIN_S)[0].HasField("temperature_celsius")
    assert driver.sample(LOOK_AGAIN_S + 2) == []
    driver.set(gone=None)
    driver.set_gpu(0, **{"xid.0": 94})
    (gpu,) = driver.sample(2 * LOOK_AGAIN_S)
    assert gpu.HasField("temperature_celsius")
    assert dict(gpu.xid_errors) == {62: 1, 94: 1}
    assert dict(gpu.xid_error_ages_s) == {62: 2 * LOOK_AGAIN_S - 2, 94: 0}


def test_a_name_that_is_no_text_harms_nothing(driver: FakeDriver) -> None:
    driver.set(gpus=1)
    driver.set_gpu(0, temperature=40, nvmlDeviceGetName=UNKNOWN)
    (gpu,) = driver.sample()
    assert (gpu.name, gpu.temperature_celsius) == ("", 40)
