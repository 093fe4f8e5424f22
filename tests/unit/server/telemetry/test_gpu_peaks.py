"""The peaks of GPUs are found by the names that NVML gives them."""

import pytest

from lockstep.server.telemetry.gpu_peaks import peaks_of


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", {"fp32": 67, "tf32": 494, "bf16": 989}),
        ("NVIDIA H100 80GB HBM3", {"fp32": 67, "tf32": 494, "bf16": 989}),
        ("NVIDIA H100 PCIe", {"fp32": 51, "tf32": 378, "bf16": 756}),
        ("NVIDIA A100-SXM4-80GB", {"fp32": 19.5, "tf32": 156, "bf16": 312}),
        ("NVIDIA A10G", {"fp32": 31.5, "tf32": 35, "bf16": 70}),
        ("NVIDIA L40S", {"fp32": 91.6, "tf32": 183, "bf16": 362}),
        ("Tesla T4", {"fp32": 8.1, "tf32": 8.1}),
        ("NVIDIA RTX A4000", {}),
        ("NVIDIA T400 4GB", {}),
        ("Quadro P2000", {}),
    ],
)
def test_a_peak_is_that_of_the_product_or_unknown(name: str, teraflops: dict[str, float]) -> None:
    assert peaks_of(name) == pytest.approx({precision: 1e12 * peak for precision, peak in teraflops.items()})
