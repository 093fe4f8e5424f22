"""GPUs as the agents see them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import Server
from tests.integration.test_telemetry import shown, telemetry_of
from tests.support.nvml.fake import FakeDriver

GIB = 1 << 30


def test_nodes_shows_gpus_as_the_driver_tells_of_them(
    make_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(tmp_path / "driver")
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    driver.set(gpus=2)
    driver.set_gpu(0, utilization=87, memory_total=140 * GIB, memory_used=41 * GIB, power=512_400, temperature=64)
    driver.set_gpu(1, nvmlDeviceGetUtilizationRates=3, nvmlDeviceGetPowerUsage=3, temperature=30)
    mapping = tmp_path / "gpu-jobs"
    server = make_server(
        "--num-cpus", "1", "--num-gpus", "0", "--warm-workers", "0", "--gpu-job-mapping-dir", str(mapping)
    ).start()
    telemetry_of(server, lambda told: len(told.gpus) == 2)
    lines = [line for line in shown(server) if "GPU" in line]
    assert lines[0] == "  GPU 0 NVIDIA H200: utilization 87 %, memory 41.0 GiB of 140.0 GiB, 512 W, 64 °C"
    assert lines[1].startswith("  GPU 1 NVIDIA H200: ")
    assert lines[1].endswith(", 30 °C") or lines[1].endswith(": 30 °C")
    driver.set_gpu(1, **{"lost": 1, "xid.0": 79})
    gpus = telemetry_of(server, lambda told: told.gpus[1].xid_errors).gpus
    assert (gpus[1].xid_errors, gpus[1].temperature_celsius) == ({79: 1}, None)
    assert gpus[0].temperature_celsius == 64
    assert "  GPU 1 NVIDIA H200: does not answer, error XID 79" in shown(server)
    assert not mapping.exists(), "no job uses a GPU"
    assert server.stop() == 0
