"""What becomes of a worker's log when the disk, the server or the process fails."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers.actor.output import WorkerLog
from lockstep.workers.logs import shipper as shipper_module
from lockstep.workers.logs import sweep as sweep_module
from lockstep.workers.logs.lines import Lines
from lockstep.workers.logs.shipper import Shipper
from lockstep.workers.logs.spool import Label, Spool
from lockstep.workers.logs.sweep import sweep
from tests.support.log_stage import Coordinator, say, serving_logs

LINE = b"x" * 99 + b"\n"
FLOOD = LINE * 100_000
Served = tuple[Coordinator, str]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def leads_to(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def notices(servicer: Coordinator) -> list[str]:
    return [line.text for request in servicer.requests for line in request.lines if line.is_notice]


def left_by(base: Path, job_id: str, text: str = "words\n") -> Spool:
    """What a worker that is gone has printed."""
    spool = Spool.create(base / "here", Label(job_id, 1, 0, "the token"))
    say(spool, text)
    spool.close()
    return spool


def noted_by_another_version(base: Path, job_id: str) -> None:
    """What a worker that is gone has printed, with a note that this version cannot read."""
    strange = Spool.create(base / "here", Label(job_id, 1, 0, "the token"))
    note = json.loads(os.pread(strange._note, 9999, 0)) | {"new_field": 1}
    os.pwrite(strange._note, json.dumps(note).encode(), 0)
    strange.close()


def printed(base: Path, address: str = "127.0.0.1:1") -> WorkerLog:
    order = StartGang(job_id="job-1", attempt=1, attempt_token="the token", coordinator_address=address)
    return WorkerLog(order, 0, base / "here")


# Gaps.


def test_lines_dropped_while_the_notice_of_others_is_under_way_are_told_with_them(
    base: Path, spool: Spool, coordinator: Served
) -> None:
    servicer, address = coordinator
    shipper = Shipper(spool, lambda: address)
    shipper._allowed_bytes = 0.0
    say(spool, FLOOD)
    shipper._drop_what_is_too_much("too fast")  # the first gap; its notice is what goes next
    shipper._allowed_bytes = 70_000.0
    servicer.code = grpc.StatusCode.UNAVAILABLE
    with servicer.changed:
        shipper.start()
        assert servicer.changed.wait_for(lambda: servicer.calls >= 1, 20)
        say(spool, FLOOD)
        calls = servicer.calls
        assert servicer.changed.wait_for(lambda: servicer.calls >= calls + 2, 20)
    assert not shipper.close(0.0)
    servicer.code = None
    assert sweep(base / "here", address) == 1
    (notice,) = notices(servicer)
    dropped = int(notice.split()[0].replace(",", ""))
    texts = servicer.texts()[1:]
    assert set(texts) == {LINE.decode().rstrip()}
    assert dropped + len(texts) == 200_000


def test_what_the_file_system_does_not_hold_is_no_text(spool: Spool) -> None:
    say(spool, b"first\n" + LINE * 10_000)
    spool.mark_rank(1)
    say(spool, b"the last\n")
    hole_end = 6 + 100 * 9_999
    if not spool.free(6, hole_end):
        pytest.skip("this file system cannot free a part of a file")
    found, lines = [], Lines(spool)  # no note tells of the hole
    while more := lines.read():
        found += more
    assert [(line.text, line.is_notice) for line in found] == [
        ("first", False),
        (f"{hole_end - 6:,} bytes were lost here: no more on the node's disk", True),
        (LINE.decode().rstrip(), False),
        ("the last", False),
    ]
    assert lines.position == spool.size()


def test_a_zero_that_was_printed_is_text(spool: Spool) -> None:
    say(spool, b"\0\0one\0\n")
    assert [line.text for line in Lines(spool).read()] == ["\0\0one\0"]


# Sweeps.


def test_a_job_whose_log_cannot_be_written_keeps_no_other_from_being_swept(
    base: Path, coordinator: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    servicer, address = coordinator
    monkeypatch.setattr(sweep_module, "PATIENCE_S", 2.0)
    servicer.code_by_job["job-a"] = grpc.StatusCode.UNAVAILABLE
    for job_id in ("job-a", "job-b", "job-c"):
        left_by(base, job_id, f"words of {job_id}\n")
    assert sweep(base / "here", address) == 2
    assert sorted(servicer.texts()) == ["words of job-b", "words of job-c"]
    assert len(list((base / "here").iterdir())) == 2
    servicer.code_by_job.clear()
    assert sweep(base / "here", address) == 1


def test_after_two_jobs_a_sweep_asks_a_server_that_is_away_no_more(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def deliver_rest(shipper: Shipper, _: float) -> bool:
        tried.append(shipper._spool.label.job_id)
        shipper._spool.close()
        return False

    monkeypatch.setattr(Shipper, "deliver_rest", deliver_rest)
    for number in range(6):
        left_by(base, f"job-{number // 2}")
    assert sweep(base / "here", "127.0.0.1:1") == 0
    assert len(set(tried)) == len(tried) == 2
    assert len(list((base / "here").iterdir())) == 12


def test_every_job_comes_first_in_some_sweep_and_its_spools_in_their_order(base: Path) -> None:
    for job_id in ("a.b", "c"):
        for _ in range(2):
            left_by(base, job_id)
    orders = set()
    for _ in range(100):
        names = []
        for spool in Spool.orphans(base / "here"):
            names.append(spool.path.name)
            spool.close()
        orders.add(tuple(names))
    names = sorted(names)
    assert orders == {tuple(names), tuple(names[2:] + names[:2])}


def test_a_note_of_another_version_keeps_no_other_spool_from_being_delivered(base: Path, coordinator: Served) -> None:
    noted_by_another_version(base, "job-0")
    left_by(base, "job-1")
    assert sweep(base / "here", coordinator[1]) == 1
    assert coordinator[0].texts() == ["words"]
    assert list(base.iterdir()) == []


def test_nothing_is_left_of_a_folder_that_held_only_what_nobody_can_deliver(base: Path) -> None:
    noted_by_another_version(base, "job-0")
    assert sweep(base / "here", "127.0.0.1:1") == 0
    assert list(base.iterdir()) == []
    (base / "here").mkdir()
    unfinished = base / "here" / "job-0.1.0.00000000"
    unfinished.touch()
    os.utime(unfinished, (0, 0))
    assert sweep(base / "here", "127.0.0.1:1") == 0
    assert list(base.iterdir()) == []


def test_what_cannot_be_delivered_for_long_is_removed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "PATIENCE_S", 0.0)
    old, new = left_by(base, "job-0"), left_by(base, "job-1")
    os.utime(old.path, (0, 0))
    assert sweep(base / "here", "127.0.0.1:1") == 0
    assert sorted(path.name for path in (base / "here").iterdir()) == [new.path.name, f"{new.path.name}.json"]


# The begin and the end.


def test_a_full_disk_keeps_neither_descriptors_nor_files(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    before, leads = descriptors(), leads_to(1)
    for _ in range(3):
        log = printed(base)
        log.begin()
        assert leads_to(1) == leads
        assert log.end(0.0)
    assert descriptors() == before
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("what", ["dup", "thread"])
def test_a_worker_that_cannot_begin_its_log_goes_on_without(
    base: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if what == "dup":
        real, calls = os.dup, iter([os.dup, fail])
        monkeypatch.setattr(os, "dup", lambda number: next(calls, real)(number))
    else:
        monkeypatch.setattr(threading.Thread, "start", fail)
    before, leads = descriptors(), [leads_to(1), leads_to(2)]
    log = printed(base)
    log.begin()
    monkeypatch.undo()
    assert [leads_to(1), leads_to(2)] == leads
    log.mark_rank(0)
    assert log.end(0.0)
    assert descriptors() == before
    assert list(base.iterdir()) == []


def test_a_log_that_is_given_up_at_the_end_leaves_the_process_its_output(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = printed(base)
    leads = [leads_to(1), leads_to(2)]
    log.begin()
    real = log._put_back
    assert real is not None
    shipper = log._shipper
    assert shipper is not None

    def put_back() -> None:
        real()
        giving_up = threading.Thread(target=shipper._keep_nothing)  # what the thread of the log may do just now
        giving_up.start()
        giving_up.join()

    monkeypatch.setattr(log, "_put_back", put_back)
    log.end(0.0)
    assert [leads_to(1), leads_to(2)] == leads


def test_a_log_that_cannot_even_be_led_to_nowhere_is_held_until_the_end(
    spool: Spool, coordinator: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Semaphore(0)

    def fail() -> None:
        tried.release()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    shipper = Shipper(spool, lambda: coordinator[1])
    monkeypatch.setattr(shipper_module, "RETRY_AFTER_S", 0.01)
    monkeypatch.setattr(spool, "save", lambda state: os.close(-1))  # an OSError
    monkeypatch.setattr(shipper, "_keep_nothing", fail)
    say(spool, "words\n")
    shipper.start()
    assert tried.acquire(timeout=20)
    assert tried.acquire(timeout=20)  # again, when a descriptor may be free
    spool.mark_rank(0)
    assert spool._is_open
    shipper.close(0.0)
    assert not spool._is_open


def test_who_ends_says_whether_something_is_left(base: Path, coordinator: Served) -> None:
    servicer, address = coordinator
    for code in (None, grpc.StatusCode.UNAVAILABLE):
        servicer.code = code
        log = printed(base, address)
        log.begin()
        log.mark_rank(0)
        os.write(1, b"words\n")
        assert log.end(5.0 if code is None else 0.2) is (code is None)


# Refusals.


def test_what_one_server_refuses_goes_to_the_next(spool: Spool, coordinator: Served) -> None:
    foreign, address = coordinator
    foreign.code = grpc.StatusCode.NOT_FOUND
    where = [address]
    shipper = Shipper(spool, lambda: where[0])
    with structlog.testing.capture_logs() as logged, serving_logs() as (servicer, other):
        say(spool, "one\n")
        with foreign.changed:
            shipper.start()
            assert foreign.changed.wait_for(lambda: foreign.calls, 20)
        where[0] = other
        servicer.wait_for("one")
        say(spool, "two\n")
        servicer.wait_for("two")
        assert shipper.close(20)
    assert servicer.texts() == ["one", "two"]
    assert foreign.calls == 1
    assert len([line for line in logged if "refuses what the worker prints" in line["event"]]) == 1


def test_a_server_that_has_refused_is_asked_again_after_a_while(
    spool: Spool, coordinator: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    servicer, address = coordinator
    monkeypatch.setattr(shipper_module, "ASK_AGAIN_AFTER_S", 0.0)
    servicer.code = grpc.StatusCode.PERMISSION_DENIED
    shipper = Shipper(spool, lambda: address)
    say(spool, "one\n")
    with servicer.changed:
        shipper.start()
        assert servicer.changed.wait_for(lambda: servicer.calls >= 2, 20)
        servicer.code = None
    servicer.wait_for("one")
    assert shipper.close(20)
