"""What GPUs can do at most, by the name that NVML gives them."""

from __future__ import annotations

import re
from typing import NamedTuple


class Peaks(NamedTuple):
    """Operations per second, as the data sheets of NVIDIA tell them for matrices without sparsity.

    Attributes:
        fp32: without tensor cores.
        tf32: that of fp32 on GPUs that do not know TF32.
        bf16: None on GPUs that do not know bfloat16.
    """

    fp32: float
    tf32: float
    bf16: float | None


# The first name that the GPU's has in it as words counts.
_PEAKS = (
    ("B200", Peaks(80e12, 1125e12, 2250e12)),
    ("GH200", Peaks(67e12, 494e12, 989e12)),
    ("H200", Peaks(67e12, 494e12, 989e12)),
    ("H100 PCIe", Peaks(51e12, 378e12, 756e12)),
    ("H100 NVL", Peaks(60e12, 417e12, 835e12)),
    ("H100", Peaks(67e12, 494e12, 989e12)),
    ("A100", Peaks(19.5e12, 156e12, 312e12)),
    ("A40", Peaks(37.4e12, 74.8e12, 149.7e12)),
    ("A30", Peaks(10.3e12, 82e12, 165e12)),
    ("A10G", Peaks(31.5e12, 35e12, 70e12)),
    ("A10", Peaks(31.2e12, 62.5e12, 125e12)),
    ("L40S", Peaks(91.6e12, 183e12, 362e12)),
    ("L40", Peaks(90.5e12, 90.5e12, 181e12)),
    ("L4", Peaks(30.3e12, 60e12, 121e12)),
    ("V100", Peaks(15.7e12, 15.7e12, None)),
    ("T4", Peaks(8.1e12, 8.1e12, None)),
    ("RTX 4090", Peaks(82.6e12, 82.6e12, 165.2e12)),
    ("RTX 3090", Peaks(35.6e12, 35.6e12, 71e12)),
)


def peaks_of(name: str) -> dict[str, float]:
    """Return the most operations per second of a GPU by precision; empty when the product is not known."""
    peaks = next((peaks for words, peaks in _PEAKS if re.search(rf"\b{words}\b", name)), None)
    return {} if peaks is None else {precision: peak for precision, peak in peaks._asdict().items() if peak}
