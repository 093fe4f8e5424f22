"""The sums over the validation set."""

import torch
from torch import Tensor

from lockstep.workers.engine.data_module import DataModule, Examples
from lockstep.workers.engine.listener import Activity, Listener
from lockstep.workers.engine.module import Module
from lockstep.workers.engine.pace import Pace
from lockstep.workers.engine.randomness import Settings


class Validation:
    """Computes them, in batches whose sums are added in order in float64.

    Args:
        module: in evaluation mode whenever it is asked.
        data: whose examples they are.
        examples: of the validation set.
        settings: how many of them make a batch at most, and in which precision it is computed.
        pace: of the device.
        listener: told of each batch.
    """

    def __init__(
        self, module: Module, data: DataModule, examples: Examples, settings: Settings, pace: Pace, listener: Listener
    ) -> None:
        self._module, self._data, self._examples = module, data, examples
        self._settings, self._pace, self._listener = settings, pace, listener

    @torch.no_grad()
    def sums(self, examples: range, step: int) -> Tensor:
        """Sums of loss, weight and right answers over a range of the examples, float64, (3,), after a step."""
        device = self._examples.inputs.device
        loss_sum, weight, right = total = torch.zeros(3, dtype=torch.float64, device=device).unbind()
        for start in range(examples.start, examples.stop, self._settings.batch_size):
            self._listener.entered(Activity.EVALUATE, step)
            batch = slice(start, min(start + self._settings.batch_size, examples.stop))
            inputs, targets = self._data.take(self._examples, batch)
            outputs = self._settings.precision.outputs(self._module, inputs)
            losses = self._module.loss(outputs, targets)
            loss_sum += losses.sum(dtype=torch.float64)
            weight += self._module.weight_of(losses, targets)
            correct = self._module.count_correct(outputs, targets)
            if correct is not None:
                right += correct
            self._pace.wait()
        return torch.stack(total).cpu()
