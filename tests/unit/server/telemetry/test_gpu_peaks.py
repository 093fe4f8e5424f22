"""The peaks of GPUs are found by the names that NVML gives them."""

import pytest

from lockstep.server.telemetry.gpu_peaks import peak_flops


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 67.0),
        ("NVIDIA H100 80GB HBM3", 67.0),
        ("NVIDIA H100 PCIe", 51.0),
        ("NVIDIA A100-SXM4-80GB", 19.5),
        ("NVIDIA A10G", 31.5),
        ("NVIDIA L40S", 91.6),
        ("Tesla T4", 8.1),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA T400 4GB", None),
        ("Quadro P2000", None),
    ],
)
def test_a_peak_is_that_of_the_product_or_unknown(name: str, teraflops: float | None) -> None:
    assert peak_flops(name) == (None if teraflops is None else pytest.approx(1e12 * teraflops))
