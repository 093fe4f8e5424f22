"""What another installed part offers, by entry points: the client imports none of them by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lockstep.client.errors import MissingPackage


def how_to_install(extra: str) -> str:
    """How to install an extra of Lockstep, such as "workers"."""
    return f"pip install '.[{extra}]' in a checkout of Lockstep"


def load_part(group: str, name: str, needed_by: str, extra: str) -> Any:
    """Load what the entry point `name` of a group names.

    Args:
        group: of the entry points.
        name: of the one.
        needed_by: what does not go without it, for the message.
        extra: of Lockstep, which has it.

    Raises:
        MissingPackage: no installed part has it, or what that part needs is not installed.
    """
    found = next((entry_point for entry_point in entry_points(group=group) if entry_point.name == name), None)
    if found is None:
        raise MissingPackage(f"{needed_by} needs a part of Lockstep that is not installed: {how_to_install(extra)}")
    return load_entry_point(found, needed_by, extra)


def load_entry_point(entry_point: EntryPoint, needed_by: str, extra: str) -> Any:
    """Load it, or say what is missing; see load_part."""
    try:
        return entry_point.load()
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"{needed_by} needs the Python module {error.name}, which is not installed: {how_to_install(extra)}"
        ) from error
