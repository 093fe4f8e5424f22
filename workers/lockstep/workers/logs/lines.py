"""What stands in a spool, as lines."""

import os
import re
import time
from typing import NamedTuple

from lockstep.contract.bounds import LONGEST_LINE_BYTES
from lockstep.contract.wording import count, were
from lockstep.workers.logs.spool import MARK, Gap, Spool, State

CHUNK_BYTES = 64 << 10
"""What is read at once."""
PARTIAL_AFTER_S = 1.0
"""How long a line may lack its end before it is taken as it is."""
KEPT_BYTES = CHUNK_BYTES
"""How much of the newest is kept when lines are dropped."""
SCAN_BYTES = 1 << 20

_RANK = re.compile(re.escape(MARK) + rb'\{"rank": ([0-9]{1,6})\}')


class Line(NamedTuple):
    """One line.

    Attributes:
        end: position behind it in the spool.
        rank: of the worker; None while it had none.
        text: without its end.
        is_notice: it is not the worker's, but says what was dropped.
    """

    end: int
    rank: int | None
    text: str
    is_notice: bool = False


class Lines:
    """Reads a spool on from where it is delivered.

    Attributes:
        position: up to where it was read.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.position, self._rank, self.gap = spool.state.position, spool.state.rank, spool.state.gap
        self._partial: tuple[int, float] = (-1, 0.0)

    def state(self) -> State:
        """What to write down when everything that was read has arrived."""
        return State(self.position, self._rank, self.gap)

    def backlog_bytes(self) -> int:
        """What is there to be read, without the gap."""
        gap_bytes = self.gap.end - self.gap.start if self.gap else 0
        return self._spool.size() - self.position - gap_bytes

    def read(self, *, to_the_end: bool = False) -> list[Line]:
        """The next lines, at most 64 KiB of them; none when there is nothing new.

        Args:
            to_the_end: take the last line although it lacks its end.
        """
        limit = CHUNK_BYTES
        if self.gap is not None:
            if self.position == self.gap.start:
                return [self._leave_out(self.gap)]
            limit = min(limit, self.gap.start - self.position)
        edge = self.gap.start if self.gap is not None else -1
        data = os.pread(self._spool.data, limit, self.position)
        if self.gap is None and b"\0" in data and (hole := self._spool.hole(self.position)) is not None:
            # A crash of the machine may lose the note that tells of it; it is no text in any case.
            start, end = hole
            if start < self.position + len(data):
                data = data[: max(0, start - self.position)].rstrip(b"\0")  # blocks are freed whole, the rest is zeros
                edge = self.position + len(data)
            if not data:
                return [self._skip(end)]
        lines: list[Line] = []
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._cut(piece, lines, is_whole=True)
            self.position += 1
            if lines:
                lines[-1] = lines[-1]._replace(end=self.position)
        is_last = len(data) < CHUNK_BYTES
        if rest:
            is_cut_here = self.position + len(rest) == edge
            self._cut(rest, lines, is_whole=is_cut_here or self._is_old(is_last) or (to_the_end and is_last))
        return lines

    def drop(self, why: str) -> None:
        """Leave out all but the newest of what is there to be read; a notice in its place says so."""
        gap = self.gap or Gap(self.position, self.position, 0, self._rank, why)
        end, lines, rank = gap.end, gap.lines, gap.rank
        target = self._spool.size() - KEPT_BYTES
        before = b""
        while end < target:
            data = os.pread(self._spool.data, min(SCAN_BYTES, target - end), end)
            if end + len(data) >= target and (last := data.rfind(b"\n")) >= 0:
                data, target = data[: last + 1], 0  # what is kept begins with a line
            lines += data.count(b"\n")
            ranks = _RANK.findall(before + data)
            rank = int(ranks[-1]) if ranks else rank
            before, end = data[-64:], end + len(data)
        if end > gap.end:
            self.gap = Gap(gap.start, end, lines, rank, why)

    def _skip(self, end: int) -> Line:
        """Go on behind a hole that no note tells of."""
        behind = os.pread(self._spool.data, CHUNK_BYTES, end)
        end += len(behind) - len(behind.lstrip(b"\0"))
        words = f"{were(end - self.position, 'byte')} lost here: no more on the node's disk"
        self.position = end
        return Line(end, self._rank, words, is_notice=True)

    def _leave_out(self, gap: Gap) -> Line:
        self.position, self._rank, self.gap = gap.end, gap.rank, None
        lost = f"{count(gap.lines, 'line')} ({count(gap.end - gap.start, 'byte')})"
        words = f"{lost} {'was' if gap.lines == 1 else 'were'} dropped here: {gap.why}"
        return Line(gap.end, gap.rank, words, is_notice=True)

    def _is_old(self, is_last: bool) -> bool:
        """Whether the line that begins at the position has lacked its end for long."""
        if self._partial[0] != self.position or not is_last:
            self._partial = (self.position, time.monotonic())
        return time.monotonic() - self._partial[1] >= PARTIAL_AFTER_S

    def _cut(self, piece: bytes, lines: list[Line], *, is_whole: bool) -> None:
        """Take a piece without a line's end, in parts that are not too long; of one that may grow, whole parts."""
        mark = _RANK.search(piece) if is_whole and MARK in piece else None
        if mark is not None:
            if mark.start():
                self._cut(piece[: mark.start()], lines, is_whole=True)
            self._rank = int(mark[1])
            self.position += len(piece) - mark.start()
            return
        while is_whole or len(piece) > LONGEST_LINE_BYTES:
            part = piece[:LONGEST_LINE_BYTES]
            if len(part) < len(piece):
                part = part[: len(part) - _torn(piece, len(part))]
            self.position += len(part)
            # What a terminal would show of a line that was written over.
            shown = part.rstrip(b"\r").rpartition(b"\r")[2]
            lines.append(Line(self.position, self._rank, shown.decode("utf-8", "replace")))
            piece = piece[len(part) :]
            if not piece:
                return


def _torn(data: bytes, cut: int) -> int:
    """How many bytes before `cut` belong to a character that goes on behind it."""
    back = 0
    while back < 3 and data[cut - back] & 0xC0 == 0x80:
        back += 1
    return back if data[cut - back] & 0xC0 == 0xC0 else 0
