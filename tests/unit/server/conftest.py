from __future__ import annotations

import pytest

from lockstep.server import logs


@pytest.fixture(autouse=True)
def plain_logs() -> None:
    logs.configure("console")
