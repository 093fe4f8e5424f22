"""Which workers a node has a GPU for."""

import pytest

from lockstep.workers.launcher.gpu_room import has_room

Held = list[tuple[float, tuple[str, ...]]]


@pytest.mark.parametrize(
    ("gpus", "usable", "held", "fits"),
    [
        (1.0, 1.0, [], True),
        (1.0, 1.0, [(0.25, ("0",))], False),
        (0.75, 1.0, [(0.25, ("0",))], True),
        (0.76, 1.0, [(0.25, ("0",))], False),
        (0.1, 1.0, [(0.1, ("0",))] * 9, True),
        (0.1, 1.0, [(0.1, ("0",))] * 10, False),
        (1.0, 2.0, [(0.5, ("0",)), (0.5, ("1",))], False),
        (0.75, 2.0, [(0.5, ("0",)), (0.5, ("1",))], False),
        (1.0, 2.0, [(0.5, ("0",)), (0.5, ("0",))], True),
        (0.5, 2.0, [(1.0, ("0",)), (0.75, ("1",))], False),
        (0.25, 2.0, [(1.0, ("0",)), (0.75, ("1",))], True),
        (1.0, 2.0, [(0.5, ()), (0.5, ())], True),  # as yet nobody knows where; Ray fills a GPU first
        (1.0, 2.0, [(0.75, ()), (0.5, ())], False),
        (0.25, 1.0, [(0.5, ("0",)), (0.5, ())], False),
        (0.0, 0.0, [], True),
        (0.5, 0.0, [], False),
    ],
)
def test_a_part_has_to_be_of_one_gpu(gpus: float, usable: float, held: Held, fits: bool) -> None:
    assert has_room(gpus, usable, held) is fits
