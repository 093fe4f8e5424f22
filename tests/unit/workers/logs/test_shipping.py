"""What a worker prints: kept in a file, read as lines, delivered, and delivered by others when it dies."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from lockstep.contract.bounds import LONGEST_LINE_BYTES
from lockstep.workers.logs import shipper as shipper_module
from lockstep.workers.logs.lines import CHUNK_BYTES, KEPT_BYTES, Line, Lines
from lockstep.workers.logs.shipper import BURST_BYTES, SLACK_BYTES, Shipper
from lockstep.workers.logs.spool import Label, Spool, State
from lockstep.workers.logs.sweep import sweep
from tests.support.log_stage import LABEL, Coordinator, say

WORKER = """
import ctypes, os, subprocess, sys
from pathlib import Path
from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers.logs import spool
from lockstep.workers.actor.output import WorkerLog, configure_logger
import logging
spool.BASE = Path(sys.argv[1])
order = StartGang(job_id="job-1", attempt=2, attempt_token="the token", coordinator_address=sys.argv[2])
printed = WorkerLog(order, 3, spool.BASE / "here")
print("before")
printed.begin()
"""


def shown(lines: list[Line]) -> list[tuple[int | None, str]]:
    return [(line.rank, line.text) for line in lines]


def run_worker(base: Path, address: str, script: str) -> "subprocess.CompletedProcess[str]":
    """A process that prints into a log as a worker does."""
    command = [sys.executable, "-c", WORKER + script, str(base), address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# What stands in a spool.


def test_lines_are_read_with_the_rank_that_the_worker_had(spool: Spool) -> None:
    lines = Lines(spool)
    say(spool, "reads data\n")
    spool.mark_rank(1)
    say(spool, "step\n\n")
    spool.mark_rank(0)
    say(spool, "leads now\n")
    assert shown(lines.read()) == [(None, "reads data"), (1, "step"), (1, ""), (0, "leads now")]
    assert lines.read() == []
    assert lines.position == spool.size()


def test_what_is_no_mark_of_a_rank_is_text(spool: Spool) -> None:
    say(spool, b'\x1e{"rank": "x"}\n\x1e{"rank": 3000000000}\n\x1e\n\xff\n')
    texts = ['\x1e{"rank": "x"}', '\x1e{"rank": 3000000000}', "\x1e", "\N{REPLACEMENT CHARACTER}"]
    assert [text for _, text in shown(Lines(spool).read())] == texts


def test_a_line_waits_for_its_end_but_not_for_long(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(spool)
    say(spool, "loss")
    assert lines.read() == []
    say(spool, " 0.5\nacc")
    assert shown(lines.read()) == [(None, "loss 0.5")]
    assert lines.read() == []
    monkeypatch.setattr("lockstep.workers.logs.lines.PARTIAL_AFTER_S", 0.0)
    assert shown(lines.read()) == [(None, "acc")]


def test_a_long_line_comes_in_pieces_that_cut_no_character_and_lose_none(spool: Spool) -> None:
    text = "x" + "\N{EURO SIGN}" * CHUNK_BYTES
    say(spool, f"{text}\nnext\n")
    lines, found = Lines(spool), []
    while more := lines.read():
        found += more
    assert "".join(line.text for line in found) == f"{text}next"
    assert max(len(line.text.encode()) for line in found) <= LONGEST_LINE_BYTES
    ends = [line.end for line in found]
    assert ends == sorted(set(ends))
    assert ends[-1] == spool.size()


def test_a_line_that_is_written_over_shows_what_a_terminal_would_show(spool: Spool) -> None:
    say(spool, "10 %\r20 %\r100 %\r\n")
    assert shown(Lines(spool).read()) == [(None, "100 %")]


def test_what_is_dropped_is_told_in_its_place_with_the_number_of_lines(spool: Spool) -> None:
    lines = Lines(spool)
    say(spool, "first\n")
    assert shown(lines.read()) == [(None, "first")]
    spool.mark_rank(4)
    say(spool, b"flood\n" * CHUNK_BYTES)
    lines.drop("too fast")
    assert lines.backlog_bytes() <= KEPT_BYTES + len("flood\n")
    notice, *rest = lines.read() + lines.read()
    assert notice.is_notice
    assert notice.text.endswith("were dropped here: too fast")
    dropped = int(notice.text.split()[0].replace(",", ""))
    while more := lines.read():
        rest += more
    assert {line.text for line in rest} == {"flood"}
    assert {line.rank for line in rest} == {4}
    assert dropped + len(rest) == CHUNK_BYTES + 1  # the mark of the rank is a line too
    assert lines.position == spool.size()


def test_a_spool_of_a_living_writer_is_nobody_elses(base: Path, spool: Spool) -> None:
    assert list(Spool.orphans(base / "here")) == []
    say(spool, "one\ntwo\n")
    spool.save(State(4, 2, None))
    spool.close()
    (orphan,) = Spool.orphans(base / "here")
    assert (orphan.label, orphan.state) == (LABEL, State(4, 2, None))
    assert shown(Lines(orphan).read()) == [(2, "two")]
    orphan.remove()
    assert list(base.iterdir()) == []


def test_what_a_process_was_about_to_make_when_it_died_is_removed_later(base: Path, spool: Spool) -> None:
    names = ("half", "half.draft")
    for name in names:
        (base / "here" / name).touch()
    assert list(Spool.orphans(base / "here")) == []
    assert all((base / "here" / name).exists() for name in names)  # it may be about to
    for path in (base / "here").iterdir():
        os.utime(path, (0, 0))
    assert list(Spool.orphans(base / "here")) == []
    assert len(list((base / "here").iterdir())) == 2  # the spool and its note


def test_a_folder_that_others_can_read_is_refused(base: Path) -> None:
    base.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="remove it"):
        Spool.create(base / "here", LABEL)


# Delivery.


def test_the_last_spool_takes_its_folder_along_and_the_next_one_finds_a_place(base: Path) -> None:
    label = LABEL
    first, second = (Spool.create(base / "server", label) for _ in range(2))
    first.remove()
    assert (base / "server").is_dir()
    second.remove()
    assert list(base.iterdir()) == []

    def come_and_go(number: int) -> None:
        for _ in range(50):
            Spool.create(base / "server", label).remove()

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(come_and_go, range(4)))
    assert list(base.iterdir()) == []


def test_everything_arrives_and_the_files_go(base: Path, spool: Spool, coordinator: tuple[Coordinator, str]) -> None:
    servicer, address = coordinator
    shipper = Shipper(spool, lambda: address)
    shipper.start()
    say(spool, "one\n")
    servicer.wait_for("one")
    spool.mark_rank(0)
    say(spool, "two\nthe last has no end")
    shipper.close(20)
    assert servicer.lines() == [(None, "one"), (0, "two"), (0, "the last has no end")]
    assert servicer.tokens == {"the token"}
    assert {(r.job_id, r.attempt, r.number) for r in servicer.requests} == {("job-1", 2, 3)}
    assert list(base.iterdir()) == []


def test_lines_wait_while_the_coordinator_is_away(spool: Spool, coordinator: tuple[Coordinator, str]) -> None:
    servicer, address = coordinator
    servicer.code = grpc.StatusCode.UNAVAILABLE
    shipper = Shipper(spool, lambda: address)
    with servicer.changed:
        shipper.start()
        say(spool, "one\n")
        assert servicer.changed.wait(20)
        servicer.code = None
    servicer.wait_for("one")
    shipper.close(20)
    assert servicer.texts() == ["one"]


def test_what_does_not_arrive_before_the_end_stays_for_a_sweep(
    base: Path, spool: Spool, coordinator: tuple[Coordinator, str]
) -> None:
    servicer, address = coordinator
    servicer.code = grpc.StatusCode.UNAVAILABLE
    shipper = Shipper(spool, lambda: address)
    shipper.start()
    say(spool, "one\ntwo\n")
    shipper.close(0.2)
    servicer.code = None
    assert sweep(base / "here", address) == 1
    assert servicer.texts() == ["one", "two"]
    assert list(base.iterdir()) == []


def test_whoever_is_refused_delivers_nothing_more(
    base: Path, spool: Spool, coordinator: tuple[Coordinator, str]
) -> None:
    servicer, address = coordinator
    servicer.code = grpc.StatusCode.PERMISSION_DENIED
    shipper = Shipper(spool, lambda: address)
    shipper.start()
    say(spool, "one\n")
    shipper.close(20)
    assert servicer.texts() == []
    assert list(base.iterdir()) == []


def test_a_flood_is_bounded_on_the_line_and_on_the_disk(
    spool: Spool, coordinator: tuple[Coordinator, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    servicer, address = coordinator
    monkeypatch.setattr(shipper_module, "BURST_BYTES", 1 << 20)
    shipper = Shipper(spool, lambda: address)
    flood = b"%0127d\n" % 7 * 8192  # 1 MiB
    for _ in range(100):
        say(spool, flood)
    shipper.start()
    say(spool, "the end\n")
    servicer.wait_for("the end")
    blocks = os.fstat(spool.data).st_blocks * 512
    shipper.close(20)
    notices = [line for request in servicer.requests for line in request.lines if line.is_notice]
    assert notices
    assert "more than 256 KiB a second" in notices[0].text
    dropped = sum(int(line.text.split()[0].replace(",", "")) for line in notices)
    assert dropped + len(servicer.texts()) - len(notices) == 100 * 8192 + 1
    assert blocks <= SLACK_BYTES + BURST_BYTES


def test_where_nothing_can_be_freed_a_worker_that_prints_much_is_cut_off(
    base: Path, coordinator: tuple[Coordinator, str]
) -> None:
    servicer, address = coordinator
    script = """
from lockstep.workers.logs import shipper
shipper.UNFREED_BYTES = 1 << 20
spool.Spool.free = lambda *_: False
while os.fstat(1).st_size and Path(os.readlink("/proc/self/fd/1")) != Path(os.devnull):
    print("x" * 1000)
    os.sched_yield()
printed.end(20)
print("after")
"""
    done = run_worker(base, address, "print('begin', flush=True)" + script)
    assert (done.stdout, done.stderr) == ("before\nafter\n", "")
    assert shipper_module.NOT_FREED in servicer.texts()


# A worker's process.


def test_all_that_a_process_prints_is_in_its_log_until_it_ends(
    base: Path, coordinator: tuple[Coordinator, str]
) -> None:
    servicer, address = coordinator
    script = """
configure_logger()
print("by Python")
sys.stderr.write("an error\\n")
logging.getLogger("lockstep").info("an event")
ctypes.CDLL(None).puts(b"by C")
ctypes.CDLL(None).fflush(None)
subprocess.run(["echo", "by a child"])
printed.mark_rank(1)
os.write(2, b"by the system\\n")
printed.end(20)
print("after")
sys.stderr.write("after\\n")
"""
    done = run_worker(base, address, script)
    assert (done.stdout, done.stderr) == ("before\nafter\n", "after\n")
    expected = [(None, text) for text in ("by Python", "an error", "INFO an event", "by C", "by a child")]
    assert servicer.lines() == [*expected, (1, "by the system")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_lines_of_a_process_that_dies_are_delivered_by_a_sweep(
    base: Path, coordinator: tuple[Coordinator, str], number: signal.Signals
) -> None:
    servicer, address = coordinator
    script = f"""
printed.mark_rank(2)
print("the last words")
os.kill(os.getpid(), {int(number)})
"""
    done = run_worker(base, "127.0.0.1:1", script)  # where nobody answers
    assert done.returncode == -number
    assert sweep(base / "here", address) == 1
    assert servicer.lines() == [(2, "the last words")]
    assert list(base.iterdir()) == []
    assert sweep(base / "here", address) == 0


def test_a_sweep_of_a_server_that_is_away_keeps_everything(
    base: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep.workers.logs.sweep.PATIENCE_S", 0.1)
    say(spool, "one\n")
    spool.close()
    assert sweep(base / "here", "127.0.0.1:1") == 0
    assert len(list((base / "here").iterdir())) == 2


def test_a_log_that_cannot_be_kept_any_more_writes_into_no_file_that_is_opened_later(
    base: Path, spool: Spool, coordinator: tuple[Coordinator, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "save", lambda state: os.close(-1))  # an OSError
    shipper = Shipper(spool, lambda: coordinator[1])
    given_up = threading.Event()
    monkeypatch.setattr(shipper, "_keep_nothing", given_up.set)
    say(spool, "words\n")
    shipper.start()
    assert given_up.wait(20)
    opened = os.open(base / "checkpoint", os.O_RDWR | os.O_CREAT)
    spool.mark_rank(0)
    assert opened != spool.data
    assert os.fstat(opened).st_size == 0
    os.close(opened)
    shipper.close(0.0)


def test_a_spool_that_cannot_be_read_is_removed_and_keeps_no_other_from_being_delivered(
    base: Path, spool: Spool, coordinator: tuple[Coordinator, str]
) -> None:
    damaged = Spool.create(base / "here", Label("job-0", 1, 0, "the token"))
    os.pwrite(damaged._note, b"{" * 10, 0)
    damaged.close()
    strange = Spool.create(base / "here", Label("job-0", 1, 1, "the token"))
    say(strange, "strange\n")
    strange.save(State(0, 1 << 40, None))  # a rank that no message holds
    strange.close()
    say(spool, "words\n")
    spool.close()
    sweep(base / "here", coordinator[1])
    assert coordinator[0].texts() == ["words"]
    assert list(base.iterdir()) == []
