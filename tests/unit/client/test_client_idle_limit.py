"""A limit on how long a stream may be silent is one on the stream, not on the client's machine."""

from __future__ import annotations

import sys

from tests.support.stopping import stop_and_go_on

LIMIT_S = 2.0
SCRIPT = f"""
import threading
from lockstep.client._idle_limit import IdleLimit

class SlowStream:
    def __init__(self):
        self.ends = threading.Event()

    def __next__(self):
        # A message after half of the limit, in parts, as a process reads that is stopped now and then.
        for _ in range(10):
            if self.ends.wait({LIMIT_S} / 20):
                return "cancelled"
        return "a message"

    def cancel(self):
        self.ends.set()

with IdleLimit(SlowStream(), {LIMIT_S}) as stream:
    for _ in range(2):
        print("ready", flush=True)
        print(stream.next(), stream.has_passed, flush=True)
    stream._stream = SlowStream()
    stream._stream.__class__.__next__ = lambda self: (self.ends.wait(), "cancelled")[1]
    print(stream.next(), stream.has_passed, flush=True)
"""


def test_a_stream_is_not_cancelled_because_the_client_was_stopped() -> None:
    said = stop_and_go_on([sys.executable, "-c", SCRIPT], 2 * LIMIT_S)
    assert said == ["a message False", "a message False", "cancelled True"]
