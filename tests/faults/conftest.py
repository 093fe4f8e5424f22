"""The fleet that dies and heals."""

from collections.abc import Iterator

import pytest

from tests.support.process_fleet import Fleet


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """Processes that train together, some of which die."""
    fleet = Fleet()
    yield fleet
    fleet.close()
