"""What Hopper and later GPUs tell of what runs on them, beyond whether something does."""

import math
from typing import Any

import pynvml

METRICS = {
    "sm_active_ratio": pynvml.NVML_GPM_METRIC_SM_UTIL,
    "sm_occupancy_ratio": pynvml.NVML_GPM_METRIC_SM_OCCUPANCY,
    "tensor_active_ratio": pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    "memory_bandwidth_ratio": pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
}
"""NVML's metric, in percent, of each field of GpuTelemetry."""


class Gpm:
    """The GPU performance metrics of one GPU.

    Args:
        device: NVML's handle of the GPU.

    Raises:
        NVMLError: the GPU has none.
    """

    def __init__(self, device: Any) -> None:
        if not pynvml.nvmlGpmQueryDeviceSupport(device).isSupportedDevice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._device = device
        self._newest = pynvml.nvmlGpmSampleAlloc()
        self._spare = pynvml.nvmlGpmSampleAlloc()
        self._has_sample = False
        self._question = pynvml.c_nvmlGpmMetricsGet_t()  # 20 kB, most of it for metrics that nobody asks for
        self._question.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._question.numMetrics = len(METRICS)
        for number, metric in enumerate(METRICS.values()):
            self._question.metrics[number].metricId = metric

    def ratios(self) -> dict[str, float]:
        """The means since the call before, 0 to 1, by the name of the field; nothing the first time.

        Raises:
            NVMLError: the GPU cannot tell now.
        """
        pynvml.nvmlGpmSampleGet(self._device, self._spare)
        older, self._newest, self._spare = self._newest, self._spare, self._newest
        had_sample, self._has_sample = self._has_sample, True
        if not had_sample:
            return {}
        self._question.sample1, self._question.sample2 = older, self._newest
        pynvml.nvmlGpmMetricsGet(self._question)
        answers = zip(METRICS, self._question.metrics[: len(METRICS)], strict=True)
        return {
            name: min(1.0, max(0.0, answer.value / 100))
            for name, answer in answers
            if answer.nvmlReturn == pynvml.NVML_SUCCESS and math.isfinite(answer.value)
        }

    def close(self) -> None:
        """Free the samples.

        Raises:
            NVMLError: they cannot be freed.
        """
        pynvml.nvmlGpmSampleFree(self._newest)
        pynvml.nvmlGpmSampleFree(self._spare)
