"""Which builder makes which kind of data."""

from collections.abc import Callable
from typing import Any

from lockstep.v1.job_spec_pb2 import DataSpec
from lockstep.workers.engine import DataModule
from lockstep.workers.registry import Registry

DataBuilder = Callable[[Any], DataModule]


class DataRegistry(Registry[DataBuilder]):
    """The builders of data: of the message of its kind, the data, not loaded yet."""

    def __init__(self) -> None:
        super().__init__("data")
        self._places: dict[str, tuple[str, ...]] = {}

    def __call__(self, kind: str, *, places: tuple[str, ...] = ()) -> Callable[[DataBuilder], DataBuilder]:
        """Register the builder below as that of a kind.

        Args:
            kind: a case of the oneof.
            places: fields that say where its files lie, and so nothing of what is in them.
        """
        self._places[kind] = places
        return super().__call__(kind)

    def name_of(self, spec: DataSpec) -> bytes:
        """What says with the content of its files what the data is: equal wherever these lie."""
        name = DataSpec()
        name.CopyFrom(spec)
        kind = name.WhichOneof("kind")
        if kind is not None:
            for place in self._places[kind]:
                getattr(name, kind).ClearField(place)
        return name.SerializeToString(deterministic=True)


builds = DataRegistry()
