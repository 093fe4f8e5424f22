"""A GPU on which PyTorch cannot compute is told before anything is brought there."""

import pytest
import torch

from lockstep.contract.failures import FailureReason
from lockstep.workers.actor.failures import is_of_the_user, job_error
from lockstep.workers.engine import DeviceUnusable, Trainer
from lockstep.workers.engine.devices import bound_memory, check_usable
from tests.support.honest_models import Numbers, Points, sgd

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


def test_a_cpu_is_always_usable_and_has_no_share() -> None:
    check_usable(CPU)
    bound_memory(CPU, 0.25)


def test_a_build_without_cuda_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(DeviceUnusable) as unusable:
        Trainer(max_steps=1, batch_size=8).fit(Numbers(), Points(), sgd, device="cuda")
    assert str(unusable.value) == (
        f"PyTorch cannot compute on cuda: PyTorch {torch.__version__} is built without CUDA: install a build with it "
        'on this machine; or use CPUs (device="cpu")'
    )


def test_what_cuda_says_of_a_driver_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(DeviceUnusable) as unusable:
        check_usable(GPU)
    error = unusable.value
    error.rename({"device": "resources.gpus_per_worker: 0"})
    told = job_error(error, 2)
    assert told.reason == FailureReason.PLACEMENT_FAILED
    assert told.message == (
        "worker 2: PyTorch cannot compute on cuda:0: CUDA says: The NVIDIA driver on your system is too old (found "
        "version 11040); or use CPUs (resources.gpus_per_worker: 0)"
    )
    assert not told.traceback
    assert is_of_the_user(error)


def test_the_memory_of_a_gpu_is_bounded_to_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *bound: bounds.append(bound))
    bound_memory(GPU, 0.25)
    assert bounds == [(0.25, GPU)]
