"""What GPUs can do at most, by the name that NVML gives them."""

from __future__ import annotations

import re

# Dense FP32 operations per second without tensor cores, of NVIDIA's data sheets: jobs train in FP32. The first name
# that the GPU's has in it as words counts.
_FP32_FLOPS = (
    ("B200", 80e12),
    ("GH200", 67e12),
    ("H200", 67e12),
    ("H100 PCIe", 51e12),
    ("H100 NVL", 60e12),
    ("H100", 67e12),
    ("A100", 19.5e12),
    ("A40", 37.4e12),
    ("A30", 10.3e12),
    ("A10G", 31.5e12),
    ("A10", 31.2e12),
    ("L40S", 91.6e12),
    ("L40", 90.5e12),
    ("L4", 30.3e12),
    ("V100", 15.7e12),
    ("T4", 8.1e12),
    ("RTX 4090", 82.6e12),
    ("RTX 3090", 35.6e12),
)


def peak_flops(name: str) -> float | None:
    """Return the most FP32 operations per second of a GPU; None when it is not known."""
    return next((flops for words, flops in _FP32_FLOPS if re.search(rf"\b{words}\b", name)), None)
