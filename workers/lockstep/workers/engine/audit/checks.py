"""What can be told of a module and of data before anything is computed."""

from torch import Tensor, nn

from lockstep.workers.engine.audit.layers import refuse_layers_that_communicate
from lockstep.workers.engine.data_module import DataModule, Examples
from lockstep.workers.engine.errors import DataError, ModelError
from lockstep.workers.engine.module import Module


def check_module(module: nn.Module) -> None:
    """Check that a module has what the engine asks it for, and nothing that the engine would miss.

    Raises:
        ModelError: it does not.
    """
    name = type(module).__name__
    if not isinstance(module, Module):
        raise ModelError(
            f"{name} is no lockstep Module; derive it from lockstep.workers.engine.Classifier or Regressor, or from "
            "Module with a loss of its own"
        )
    if type(module).loss is Module.loss and "loss" not in vars(module):
        raise ModelError(
            f"{name} has no loss; write loss(self, outputs, targets), which returns the loss of each example, (n,), "
            "not reduced, or derive it from Classifier or Regressor"
        )
    for path, layer in module.named_modules():
        where = f"{path or name} ({type(layer).__name__})"
        if type(layer).get_extra_state is not nn.Module.get_extra_state:
            raise ModelError(
                f"{where} keeps state in get_extra_state, which is handed on to no other worker and is in no "
                "checkpoint; keep it in buffers (register_buffer)"
            )
        if getattr(layer, "max_norm", None) is not None and isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            raise ModelError(
                f"{where} has max_norm={layer.max_norm}, with which forward rewrites the rows of its weight that a "
                "shard looks up; build it without, and bound in forward what was looked up"
            )
    refuse_layers_that_communicate(module)


def check_data(data: DataModule) -> None:
    """Check that data holds examples to train on and to validate on.

    Raises:
        DataError: it does not.
    """
    for part in ("train", "validation"):
        examples = getattr(data, part, None)
        hint = f"set self.{part} = Examples(inputs, targets) in the constructor, or in load() and call that first"
        if examples is None:
            raise DataError(data.field, f"{type(data).__name__} has no {part} set; {hint}")
        if not isinstance(examples, Examples) or not all(isinstance(tensor, Tensor) for tensor in examples):
            raise DataError(data.field, f"{type(data).__name__}.{part} is no Examples of two tensors; {hint}")
        inputs, targets = map(len, examples)
        if inputs != targets:
            raise DataError(
                data.field, f"the {part} set has {inputs} inputs and {targets} targets; give each one target"
            )
        if inputs == 0:
            raise DataError(data.field, f"the {part} set has no examples; allowed: at least one")
