"""What all ranks must have in common before they train together."""

import torch
from torch import nn

from lockstep.workers.engine.data_module import DataModule
from lockstep.workers.engine.determinism import hardware_class
from lockstep.workers.engine.errors import DataError, HardwareDiffers, NotDeterministic, RanksDisagree
from lockstep.workers.engine.exchange.group import Group
from lockstep.workers.engine.randomness import Settings
from lockstep.workers.engine.state.digest import weights_digest


def agree_on_arithmetic(group: Group, device: torch.device, settings: Settings) -> str:
    """Check that all ranks compute alike; returns the class of their hardware.

    Raises:
        HardwareDiffers: their hardware is of several classes.
        RanksDisagree: their trainers have other settings.
        PeerLost: a rank left.
    """
    hardware = hardware_class(device)
    group.agree("the hardware class", hardware, HardwareDiffers)
    group.agree("what the trainer was told", f"{settings}")
    return hardware


def agree_on_data(group: Group, data: DataModule) -> None:
    """Check that all ranks, of one class of hardware, train on the same examples.

    Raises:
        DataError: they do not.
        PeerLost: a rank left.
    """
    try:
        group.agree("the SHA-256 of the data", data.digest())
    except RanksDisagree as error:
        hint = "put the same files on all nodes, and submit the job again"
        if not data.files():
            hint = (
                "make it with a generator of a fixed seed, such as torch.Generator().manual_seed(0), and let it not "
                "depend on the worker"
            )
        raise DataError(data.field, f"{error}; {hint}") from error


def agree_on_model(group: Group, module: nn.Module, step: int) -> None:
    """Check that all ranks hold the same state after a step.

    Raises:
        NotDeterministic: each has made another model; no step is taken.
        RanksDisagree: they hold other states after some.
        PeerLost: a rank left.
    """
    digest = weights_digest(module)
    if step:
        group.agree(f"the model after step {step}", digest)
        return
    try:
        group.agree("the model at the start", digest)
    except RanksDisagree as error:
        raise NotDeterministic(
            f"{error}; make it with the generators seeded alike on every worker, as by "
            "torch.manual_seed(initialisation_seed(seed)), and let it not depend on the worker"
        ) from error
