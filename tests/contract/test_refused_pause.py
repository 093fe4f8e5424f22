"""A pause that the workers refuse, since they could not keep what they had."""

from __future__ import annotations

from lockstep.v1.job_pb2 import JOB_STATE_RUNNING, JOB_STATE_SUCCEEDED
from tests.contract.test_pause_and_scale import pause
from tests.support.server import Running, ScriptedLauncher, changed


async def test_a_pause_that_the_workers_refuse_has_failed_and_can_be_asked_for_again(
    server: Running, launcher: ScriptedLauncher
) -> None:
    job = await server.submit()
    gang = await launcher.next_start()
    await launcher.report(gang, 1)
    numbers = []
    for _ in range(2):
        await pause(server, job.job_id)
        stop = await launcher.next_stop()
        assert stop.keep
        numbers.append(stop.refusable)
        fact = changed(gang, gang.node_ids, message="the disk is full")
        fact.refuses_stop = True
        await launcher.say(gang_changed=fact)
        goes_on = await server.reaches(job.job_id, JOB_STATE_RUNNING)
        assert goes_on.state_reason == "the pause has failed, and training goes on: the disk is full"
    assert 0 < numbers[0] < numbers[1]
    await launcher.finish(gang, 2)
    await server.reaches(job.job_id, JOB_STATE_SUCCEEDED)
