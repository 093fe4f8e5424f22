"""The log of a job on disk: what damage leaves readable, and what is said of the rest."""

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from lockstep.server.errors import LogNotStored
from lockstep.server.logs import files
from lockstep.server.logs.files import JobLog, Position, read_records, segments_of
from lockstep.server.logs.store import LogStore, Wanted
from lockstep.v1.internal_service_pb2 import ReportLogsRequest

LIMIT_BYTES = 1 << 20
START = Position()
TIME_S = 1_700_000_000


def request(text: str, end: int) -> ReportLogsRequest:
    made = ReportLogsRequest(job_id="job", attempt=1, number=0, spool=7, ends=[end])
    made.lines.add(text=text).time.FromSeconds(TIME_S + end)
    return made


def written(folder: Path, start: int = 0, stop: int = 10) -> tuple[Path, list[int]]:
    """Store some lines, a record each; returns the segment and where its records begin."""
    log = JobLog(folder / "job", LIMIT_BYTES)
    for number in range(start, stop):
        assert log.append(request(f"line {number}", number + 1)) == 1
    segment = max((folder / "job").iterdir())
    data = segment.read_bytes()
    return segment, [at for at in range(len(data)) if data.startswith(files._MARK, at)]


def flip(segment: Path, *offsets: int) -> bytes:
    data = bytearray(segment.read_bytes())
    for offset in offsets:
        data[offset] ^= 1
    segment.write_bytes(data)
    return bytes(data)


def texts(folder: Path, place: Position = START, since_s: int = 0) -> list[str]:
    return [line.text for line in lines(folder, place, since_s)[0]]


def lines(folder: Path, place: Position = START, since_s: int = 0) -> tuple[list[Any], Position]:
    """All lines from a place on, and the place behind them."""
    store = LogStore(folder, LIMIT_BYTES)
    found: list[Any] = []
    while True:
        more, after = store._read_some("job", place, wanted(since_s))
        if after == place:
            store.close()
            return found, place
        found, place = found + more, after


def wanted(since_s: int) -> Wanted:
    return Wanted(since=datetime.fromtimestamp(since_s, UTC) if since_s else None)


def damaged(lines: str) -> str:
    return f"{lines} cannot be read here: the server's disk has damaged them"


def numbered(*numbers: int) -> list[str]:
    return [f"line {number}" for number in numbers]


@pytest.mark.parametrize("field", range(files._HEADER_BYTES))
def test_one_bit_of_a_header_hides_one_record_and_a_notice_says_so(tmp_path: Path, field: int) -> None:
    segment, starts = written(tmp_path)
    flip(segment, starts[2] + field)
    assert texts(tmp_path) == [*numbered(0, 1), damaged("1 line"), *numbered(*range(3, 10))]


def test_one_bit_of_the_text_hides_one_record_and_a_notice_says_so(tmp_path: Path) -> None:
    segment, starts = written(tmp_path)
    flip(segment, starts[3] - 1)
    assert texts(tmp_path) == [*numbered(0, 1), damaged("1 line"), *numbered(*range(3, 10))]


def test_a_place_behind_the_damage_is_good_and_one_in_it_too(tmp_path: Path) -> None:
    segment, starts = written(tmp_path)
    _, place = lines(tmp_path)
    flip(segment, starts[2], starts[3])
    assert lines(tmp_path, place) == ([], place)
    assert texts(tmp_path, Position(2, 0, starts[2])) == [damaged("2 lines"), *numbered(*range(4, 10))]


def test_damage_that_is_older_than_what_is_wanted_is_not_told(tmp_path: Path) -> None:
    segment, starts = written(tmp_path)
    flip(segment, starts[2], starts[6] + files._HEADER_BYTES)
    assert texts(tmp_path, since_s=TIME_S + 9) == numbered(8, 9)
    assert texts(tmp_path, since_s=TIME_S + 7) == [damaged("1 line"), *numbered(7, 8, 9)]


def test_the_last_lines_are_told_with_what_is_damaged_among_them(tmp_path: Path) -> None:
    segment, starts = written(tmp_path)
    flip(segment, starts[8])
    store = LogStore(tmp_path, LIMIT_BYTES)
    parts = store._tail("job", 3, Wanted())
    assert [line.text for part, _ in parts for line in part] == [*numbered(7), damaged("1 line"), *numbered(9)]
    store.close()


def test_the_next_server_leaves_a_damaged_file_as_it_is_and_goes_on_in_another(tmp_path: Path) -> None:
    segment, starts = written(tmp_path)
    left = flip(segment, starts[2] + 9)
    log = JobLog(tmp_path / "job", LIMIT_BYTES)
    assert log.append(request("line 9", 10)) == 0, "it is known although it stands behind the damage"
    assert log.append(request("line 10", 11)) == 1
    assert segment.read_bytes() == left
    assert segments_of(tmp_path / "job") == [0, 10]
    assert texts(tmp_path) == [*numbered(0, 1), damaged("1 line"), *numbered(*range(3, 11))]


@pytest.mark.parametrize("first", [0, 8])
def test_damage_up_to_the_end_is_told_once_and_what_comes_later_is_readable(tmp_path: Path, first: int) -> None:
    segment, starts = written(tmp_path)
    left = flip(segment, *starts[first:])
    before, place = lines(tmp_path)
    assert [line.text for line in before] == [*numbered(*range(first)), damaged("lines")]
    assert lines(tmp_path, place) == ([], place)
    written(tmp_path, 10, 12)
    assert segment.read_bytes() == left
    assert texts(tmp_path, place) == numbered(10, 11)
    assert texts(tmp_path) == [*numbered(*range(first)), damaged("lines"), *numbered(10, 11)]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_record_that_was_cut_off_is_cut_away_and_nothing_is_said(tmp_path: Path, cut: int) -> None:
    segment, starts = written(tmp_path)
    segment.write_bytes(segment.read_bytes()[: -min(cut, segment.stat().st_size - starts[9] - 1)])
    assert texts(tmp_path) == numbered(*range(9))
    written(tmp_path, 9, 11)
    assert segments_of(tmp_path / "job") == [0]
    assert texts(tmp_path) == numbered(*range(11))


@pytest.mark.parametrize("left", [0, 3, 8])
def test_a_segment_that_holds_no_record_yet_is_begun_again(tmp_path: Path, left: int) -> None:
    segment, _ = written(tmp_path)
    segment.write_bytes(segment.read_bytes()[:left])
    written(tmp_path)
    assert texts(tmp_path) == numbered(*range(10))


def test_a_segment_whose_first_bytes_are_damaged_is_read(tmp_path: Path) -> None:
    segment, _ = written(tmp_path)
    flip(segment, 0)
    assert texts(tmp_path) == numbered(*range(10))


def test_a_mark_that_was_printed_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SCAN_BYTES", 64)  # what is sought may lie across two parts
    monkeypatch.setattr(files, "_MARK", b"LSR!")
    log = JobLog(tmp_path / "job", LIMIT_BYTES)
    for number in range(3):
        log.append(request("LSR!" * 100, number + 1))
    segment = tmp_path / "job" / f"{0:015}.log"
    flip(segment, len(files._MAGIC))
    assert texts(tmp_path) == [damaged("1 line"), "LSR!" * 100, "LSR!" * 100]


async def test_each_time_that_a_log_cannot_be_written_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LogStore(tmp_path, LIMIT_BYTES)
    with structlog.testing.capture_logs() as logged:
        for number in range(2):
            with monkeypatch.context() as patched:
                patched.setattr(files.os, "pwrite", full)
                for _ in range(2):
                    with pytest.raises(LogNotStored):
                        await store.append(request("words", number + 1))
            await store.append(request("words", number + 1))
    store.close()
    failing, again = "a job's log cannot be written", "a job's log can be written again"
    assert [entry["event"] for entry in logged] == [failing, again, failing, again]
    assert all(entry["job_id"] == "job" for entry in logged)


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_lines_that_were_removed_to_make_room_are_not_told_as_damaged(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "job", 16 << 10)
    for number in range(100):
        log.append(request(f"{number:03} {'x' * 500}", number + 1))
    first, *_ = read_records(tmp_path / "job", Position())
    assert first.header is not None
    assert (first.removed, first.damaged) == (first.header.line, 0)
    assert first.removed > 50
