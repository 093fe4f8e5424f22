"""Kinds of a spec, and who builds each: every builder says so by a line in its own file."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

Builder = TypeVar("Builder", bound=Callable[..., Any])


class Registry(Generic[Builder]):
    """The builders of the kinds that one section of a spec offers.

        builds: Registry[Callable[[Any, DataModule], Module]] = Registry("model")
        @builds("mlp")
        def build(spec: MlpModel, data: DataModule) -> Module: ...

    Args:
        section: of the spec, such as "model"; its message has a oneof `kind`.
    """

    def __init__(self, section: str) -> None:
        self._section = section
        self._builders: dict[str, Builder] = {}

    def __call__(self, kind: str) -> Callable[[Builder], Builder]:
        """Register the builder below as that of a kind, which is a case of the oneof."""

        def register(builder: Builder) -> Builder:
            if kind in self._builders:
                raise ValueError(f"{self._section}.{kind} has two builders: {self._builders[kind]!r} and {builder!r}")
            self._builders[kind] = builder
            return builder

        return register

    @property
    def kinds(self) -> frozenset[str]:
        """All kinds that have a builder."""
        return frozenset(self._builders)

    def builder_of(self, spec: Message) -> tuple[Builder, Any]:
        """The builder of the kind that a section of a spec has chosen, and the message of that kind.

        Raises:
            ValueError: none is chosen, or nobody builds it here.
        """
        kind = spec.WhichOneof("kind")
        if kind is None:  # also when the contract of these workers is older than the spec
            raise ValueError(f"the spec has no {self._section} that these workers know; {self._hint()}")
        if kind not in self._builders:
            raise ValueError(f"these workers have no builder for {self._section}.{kind}; {self._hint()}")
        return self._builders[kind], getattr(spec, kind)

    def _hint(self) -> str:
        known = ", ".join(sorted(self._builders))
        return f"they know {known}; have the version of the server on every node"


def import_all_of(package: str) -> None:
    """Import every module of a package, so that all that they register is known."""
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, f"{package}."):
        importlib.import_module(module.name)
