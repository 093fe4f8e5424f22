"""What an attempt reports before its first step, and what people are told of where it goes on."""

from __future__ import annotations

from dataclasses import replace

from lockstep.server.jobs.job import Note, Progress, Reported, State
from lockstep.server.jobs.lifecycle import advance
from tests.unit.server.jobs.test_lifecycle import NOW, job_in


def test_what_rank_0_notes_before_its_first_step_is_no_start_and_takes_no_progress_back() -> None:
    job = replace(job_in(State.STARTING), progress=Progress(3900, 9000, 3.9))
    job, notes = advance(job, Reported(Progress(), notes=("going on from the checkpoint of step 3819",)), NOW)
    assert (job.state, job.progress, job.start_time) == (State.STARTING, Progress(3900, 9000, 3.9), None)
    assert notes == [Note("going on from the checkpoint of step 3819")]
    job, _ = advance(job, Reported(Progress(3819, 9000, 3.8), "cpu"), NOW)
    assert (job.state, job.state_reason) == (State.RUNNING, "training goes on from step 3819")
    assert (job.progress.step, job.start_time) == (3819, NOW)
