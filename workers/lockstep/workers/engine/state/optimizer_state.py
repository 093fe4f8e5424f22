"""What an optimizer keeps from step to step: which of it is state, and which belongs to the code and stays as it is."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lockstep.workers.engine.errors import ModelError
from lockstep.workers.engine.state.dtypes import DTYPES
from lockstep.workers.engine.tensor_memory import strides_of

CONSTANT = ("lr", "initial_lr", "momentum", "betas", "weight_decay")
"""Options of a parameter group that belong to the code, not to the state; a schedule would change them."""
OF_PARAMETER, OF_GROUP = "optimizer.", "group."
"""What names of tensors begin with: `optimizer.<number of the parameter>.<entry>`, `group.<number>.<option>`."""
HINT = "keep tensors and numbers, by name, in the state of a parameter or in its group"


class StateMismatch(ValueError):
    """A state does not fit the model or the optimizer; the message names the entry."""


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer keeps.

    Attributes:
        tensors: those in the states of parameters and in groups, by prefixed name; the optimizer's own.
        entries: all else in the states of parameters, by `<number of the parameter>.<entry>`.
        groups: numbers in each group.
        on_host: names of the tensors that lie in host memory, while the parameters do not.
        shapes: of the parameters of each group.
        strides: of the tensors that fill their memory in another order than that of their dimensions, by prefixed
            name: some kernels read it as it lies.
    """

    tensors: Mapping[str, Tensor]
    entries: Mapping[str, Any]
    groups: list[dict[str, Any]] | None
    on_host: list[str]
    shapes: list[list[list[int]]] | None
    strides: Mapping[str, list[int]]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> "OptimizerState":
        """What an optimizer keeps now.

        Raises:
            ModelError: it keeps what cannot be told here; names it.
        """
        check_kept(optimizer)
        tensors: dict[str, Tensor] = {}
        entries: dict[str, Any] = {}
        for number, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{OF_PARAMETER}{number}.{name}"] = value
                else:
                    entries[f"{number}.{name}"] = value
        groups: list[dict[str, Any]] = []
        for number, group in enumerate(optimizer.param_groups):
            options = {name: option for name, option in group.items() if is_state(name, option)}
            own = {name for name, option in options.items() if isinstance(option, Tensor)}
            tensors |= {f"{OF_GROUP}{number}.{name}": options.pop(name) for name in own}
            groups.append(options)
        are_on_host = all(parameter.device.type == "cpu" for parameter in parameters_of(optimizer))
        on_host = [name for name, tensor in tensors.items() if tensor.device.type == "cpu" and not are_on_host]
        return cls(tensors, entries, groups, on_host, shapes_of(optimizer), orders_of(tensors))

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Check that an optimizer can be set to this state.

        Raises:
            StateMismatch: it is over other parameters; nothing has changed.
        """
        own = shapes_of(optimizer)
        if self.shapes is not None and self.shapes != own:
            raise StateMismatch(f"the optimizer's parameters have shapes {self.shapes}, those here {own}")
        if self.groups is not None and len(self.groups) != len(own):
            raise StateMismatch(f"the optimizer has {len(self.groups)} parameter groups, here it has {len(own)}")
        counts = {OF_PARAMETER: sum(map(len, own)), OF_GROUP: len(own)}
        for name in (*self.tensors, *(OF_PARAMETER + entry for entry in self.entries)):
            prefix = next((prefix for prefix in counts if name.startswith(prefix)), None)
            number, _, entry = name.removeprefix(prefix or "").partition(".")
            if prefix is None or not number.isdecimal() or not entry or int(number) >= counts[prefix]:
                raise StateMismatch(f"the optimizer here has no place for {name}")

    def put_into(self, optimizer: torch.optim.Optimizer) -> None:
        """Set an optimizer to this state, bit for bit.

        Raises:
            StateMismatch: it does not fit; nothing has changed.
        """
        self.check(optimizer)
        values: dict[int, dict[str, Any]] = {}
        of_parameters = {n.removeprefix(OF_PARAMETER): t for n, t in self.tensors.items() if n.startswith(OF_PARAMETER)}
        for name, value in (of_parameters | dict(self.entries)).items():
            index, _, entry = name.partition(".")
            values.setdefault(int(index), {})[entry] = value
        try:
            optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
        except (KeyError, ValueError) as error:
            raise StateMismatch(f"{type(optimizer).__name__} does not take its state: {error}") from error
        parameters = parameters_of(optimizer)
        for number, kept in values.items():
            self._put_back(f"{OF_PARAMETER}{number}.", kept, optimizer.state[parameters[number]], parameters[number])
        for index, group in enumerate(optimizer.param_groups):
            prefix = f"{OF_GROUP}{index}."
            options = self.groups[index] if self.groups is not None else {}
            own = {name.removeprefix(prefix): self.tensors[name] for name in self.tensors if name.startswith(prefix)}
            self._put_back(prefix, options | own, group, parameters[0])

    def _put_back(self, prefix: str, kept: Mapping[str, Any], place: dict[str, Any], parameter: Tensor) -> None:
        """Put values in their places as they are.

        `load_state_dict` casts them to the dtype of the parameter. And what was loaded lies anywhere in its file, where
        a copy is aligned as what the optimizer makes itself, on which the bits of some kernels depend.
        """
        for name, value in kept.items():
            if isinstance(value, Tensor):
                loaded = place.get(name)
                device = loaded.device if isinstance(loaded, Tensor) else parameter.device
                target = "cpu" if prefix + name in self.on_host else device
                own = torch.empty_like(value, device=target, memory_format=torch.contiguous_format)
                if (strides := self.strides.get(prefix + name)) is not None:
                    own = own.as_strided(own.shape, strides)
                place[name] = own.copy_(value)
            else:
                place[name] = value


class Constants:
    """The options of an optimizer that belong to the code.

    Args:
        optimizer: whose options are to stay as they are now, wherever a state is put into it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._shapes = shapes_of(optimizer)
        # A state that is put into an optimizer replaces the dictionaries of its groups.
        self._options = [
            (number, name, option, _value(option))
            for number, group in enumerate(optimizer.param_groups)
            for name, option in group.items()
            if name != "params" and not is_state(name, option)
        ]

    def check(self) -> None:
        """Check that they are what they were.

        Raises:
            ModelError: one has changed, so that training would not go on from a checkpoint as it goes on here.
        """
        groups = self._optimizer.param_groups
        if len(groups) != len(self._shapes):
            raise ModelError(
                f"the optimizer had {len(self._shapes)} parameter groups and has {len(groups)}; make all of them in "
                "the function that returns the optimizer"
            )
        for number, name, option, before in self._options:
            after = groups[number].get(name)
            if (after is option and _is_immutable(option)) or is_state(name, after) or _value(after) == before:
                continue
            shown = (before, _value(after)) if name in CONSTANT else (option, after)
            raise ModelError(
                f"the optimizer's {name} changed from {shown[0]} to {shown[1]}: a schedule that counts steps by "
                "itself starts anew when training goes on from a checkpoint, and is not supported"
            )

    def check_all(self, unowned: Tensor) -> None:
        """Check, after a step, that whatever the optimizer keeps can be kept.

        Args:
            unowned: the gradient, whose memory is not the optimizer's.

        Raises:
            ModelError: it cannot; names it.
        """
        kept = OptimizerState.of(self._optimizer)
        known = {(number, name) for number, name, *_ in self._options}
        for number, group in enumerate(self._optimizer.param_groups):
            for name, option in group.items():
                if name != "params" and (number, name) not in known and not is_state(name, option):
                    raise _not_kept(self._optimizer, f"{type(option).__name__} {name} in a parameter group")
        others = (unowned, *parameters_of(self._optimizer))
        memory = {tensor.untyped_storage().data_ptr() for tensor in others}
        for name, tensor in kept.tensors.items():
            if tensor.numel() and tensor.untyped_storage().data_ptr() in memory:
                raise ModelError(
                    f"{type(self._optimizer).__name__} keeps a parameter or a gradient itself, and not its values, as "
                    f"{name.rpartition('.')[2]}; keep a copy, as in gradient.clone()"
                )


def check_kept(optimizer: torch.optim.Optimizer) -> None:
    """Check that a checkpoint can hold what an optimizer keeps.

    Raises:
        ModelError: it cannot; names it.
    """
    known = set(map(id, parameters_of(optimizer)))
    for key, values in optimizer.state.items():
        if id(key) not in known:
            shown = "a parameter that it has in no group" if isinstance(key, Tensor) else repr(key)
            raise _not_kept(optimizer, f"a state of {shown}")
        if not isinstance(values, dict):
            raise _not_kept(optimizer, f"a {type(values).__name__} as the state of a parameter")
        for name, value in values.items():
            if not isinstance(name, str):
                raise _not_kept(optimizer, f"an entry named {name!r} in the state of a parameter")
            if isinstance(value, Tensor):
                _check_tensor(optimizer, name, value)
            elif value is not None and not isinstance(value, bool | int | float | str):
                raise _not_kept(optimizer, f"{name}, a {type(value).__name__}, in the state of a parameter")
    for group in optimizer.param_groups:
        for name, option in group.items():
            if is_state(name, option) and isinstance(option, Tensor):
                _check_tensor(optimizer, name, option)


def _check_tensor(optimizer: torch.optim.Optimizer, name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        raise _not_kept(optimizer, f"{name}, a {tensor.layout} tensor of {tensor.dtype}")


def _not_kept(optimizer: torch.optim.Optimizer, what: str) -> ModelError:
    return ModelError(f"{type(optimizer).__name__} keeps {what}, which no checkpoint can hold; {HINT}")


def orders_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Strides of those tensors that fill their memory in another order than that of their dimensions."""
    return {name: list(strides_of(tensor)) for name, tensor in tensors.items() if not tensor.is_contiguous()}


def is_state(name: str, option: Any) -> bool:
    """Whether an option of a parameter group is state: a number or tensor that is none of the constants."""
    return name not in (*CONSTANT, "params") and isinstance(option, bool | int | float | Tensor)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Of all groups, as they are numbered."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def shapes_of(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    """Shapes of the parameters of each group."""
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _is_immutable(option: Any) -> bool:
    return option is None or isinstance(option, bool | int | float | str)


def _value(option: Any) -> Any:
    """What an option can be compared by later, when it may have changed in place."""
    if isinstance(option, Tensor) and option.numel() == 1:
        return option.item()
    if _is_immutable(option) or (isinstance(option, tuple) and all(map(_is_immutable, option))):
        return option
    try:
        return pickle.dumps(option)
    except Exception:  # such as of a function: then by itself
        return option


__all__ = ["CONSTANT", "Constants", "OptimizerState", "StateMismatch"]
