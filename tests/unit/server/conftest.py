from __future__ import annotations

import pytest

from lockstep.server import logging


@pytest.fixture(autouse=True)
def plain_logs() -> None:
    logging.configure("console")
