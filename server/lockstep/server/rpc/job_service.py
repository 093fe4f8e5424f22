"""JobService: translate, call the coordinator, translate back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from lockstep.contract.spec.values import show
from lockstep.server.coordinator.coordinator import Coordinator
from lockstep.server.coordinator.shown_jobs import ShownJobs
from lockstep.server.errors import InvalidRequest
from lockstep.server.jobs.job import PRINCIPAL, Job
from lockstep.server.rpc.interceptors import Context, as_written
from lockstep.server.rpc.job_feed import JobFeed
from lockstep.server.rpc.messages import job_to_proto, state_from_proto
from lockstep.server.rpc.paging import make_token, not_negative, page_size, read_token
from lockstep.server.spec.validation import MAX_LABELS
from lockstep.server.store import JobFilter, JobStore
from lockstep.server.watching.notifier import Notifier
from lockstep.v1 import job_pb2
from lockstep.v1.job_service_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    ListJobsRequest,
    ListJobsResponse,
    PauseJobRequest,
    ResumeJobRequest,
    SubmitJobRequest,
    UpdateJobRequest,
    WatchJobRequest,
    WatchJobResponse,
)
from lockstep.v1.job_service_pb2_grpc import JobServiceServicer

_MAX_REQUEST_ID = 128
_MAX_JOB_ID, _MAX_NAME, _MAX_OWNER = 64, 63, 128
_PROGRESS_INTERVAL_S = 0.2


class JobService(JobServiceServicer):
    """Submit, find, watch, change, pause and cancel jobs."""

    def __init__(self, coordinator: Coordinator, stored: JobStore, shown: ShownJobs, notifier: Notifier) -> None:
        self._coordinator = coordinator
        self._feed = JobFeed(coordinator, stored, shown, notifier)
        self._stored = stored
        self._shown_jobs = shown
        self._notifier = notifier

    def _shown(self, job: Job) -> job_pb2.Job:
        return job_to_proto(self._shown_jobs.one(job))

    async def SubmitJob(self, request: SubmitJobRequest, context: Context) -> job_pb2.Job:
        job = await self._coordinator.submit(
            request.spec,
            owner=PRINCIPAL,
            request_id=_request_id(request.request_id),
            validate_only=request.validate_only,
        )
        return job_to_proto(job)

    async def GetJob(self, request: GetJobRequest, context: Context) -> job_pb2.Job:
        return self._shown(await self._coordinator.get(required_job_id(request.job_id)))

    async def CancelJob(self, request: CancelJobRequest, context: Context) -> job_pb2.Job:
        return self._shown(await self._coordinator.cancel(required_job_id(request.job_id)))

    async def PauseJob(self, request: PauseJobRequest, context: Context) -> job_pb2.Job:
        return self._shown(await self._coordinator.pause(required_job_id(request.job_id)))

    async def ResumeJob(self, request: ResumeJobRequest, context: Context) -> job_pb2.Job:
        return self._shown(await self._coordinator.resume(required_job_id(request.job_id)))

    async def UpdateJob(self, request: UpdateJobRequest, context: Context) -> job_pb2.Job:
        job_id = required_job_id(request.job_id)
        if not request.HasField("workers"):  # What is not set stays as it is, and there is nothing else.
            return self._shown(await self._coordinator.get(job_id))
        return self._shown(await self._coordinator.scale(job_id, request.workers))

    async def ListJobs(self, request: ListJobsRequest, context: Context) -> ListJobsResponse:
        limit = page_size(request.page_size, default=100, most=1000)
        which = _filter(request)
        states = sorted(state.value for state in which.states)
        scope = ["jobs", states, dict(which.labels), which.job_id_prefix, which.name, which.owner]
        position = read_token(request.page_token, "page_token", scope, (int,))

        def write(jobs: list[Job]) -> tuple[bytes, int]:
            shown = self._shown_jobs.all(jobs[:limit])
            response = ListJobsResponse(jobs=map(job_to_proto, shown))
            if len(jobs) > limit:
                response.next_page_token = make_token([jobs[limit - 1].number], scope)
            return response.SerializeToString(), len(jobs)

        before = None if position is None else position[0]
        page, found = await self._stored.list_jobs(before=before, limit=limit + 1, which=which, make=write)
        if before is None:
            size = await self._stored.count_jobs(which) if found > limit else found
            page += ListJobsResponse(total_size=size).SerializeToString()  # messages in a row are one message
        return as_written(ListJobsResponse, page)

    async def WatchJob(self, request: WatchJobRequest, context: Context) -> AsyncIterator[WatchJobResponse]:
        job_id = required_job_id(request.job_id)
        sequence = not_negative(request.after_sequence, "after_sequence")
        await self._coordinator.get(job_id)
        loop = asyncio.get_running_loop()
        shown: Job | None = None
        with self._notifier.listen(job_id) as wakeup:
            while True:
                wakeup.clear()
                look = await self._feed.after(job_id, sequence)
                job = look.job
                if look.brings_events or job != shown:
                    yield as_written(WatchJobResponse, look.message)
                    shown, shown_at = job, loop.time()
                    sequence = look.sequence
                if look.brings_events and sequence < job.event_count:
                    continue  # without any there are none left to wait for: the store may have lost some
                if job.state.has_ended:
                    return
                await self._next_change(wakeup, job, shown_at + _PROGRESS_INTERVAL_S)

    async def _next_change(self, wakeup: asyncio.Event, shown: Job, progress_from: float) -> None:
        """Wait until there is something to show: an event at once, progress alone not before `progress_from`."""
        loop = asyncio.get_running_loop()
        self._notifier.check()
        await wakeup.wait()
        self._notifier.check()
        while (await self._coordinator.get(shown.job_id)).event_count == shown.event_count:
            wakeup.clear()
            try:
                async with asyncio.timeout(max(0.0, progress_from - loop.time())):
                    await wakeup.wait()
            except TimeoutError:
                return
            self._notifier.check()


def _request_id(request_id: str) -> str:
    if len(request_id) > _MAX_REQUEST_ID or not (request_id.isascii() and request_id.isprintable()):
        raise InvalidRequest.of(
            "request_id", f"is {show(request_id)}; allowed: at most {_MAX_REQUEST_ID} printable ASCII characters"
        )
    return request_id


def required_job_id(job_id: str) -> str:
    """Return a job_id that must be there.

    Raises:
        InvalidRequest: it is empty.
    """
    if not job_id:
        raise InvalidRequest.of("job_id", "is empty; set it to the job_id that SubmitJob returned")
    return job_id


def _filter(request: ListJobsRequest) -> JobFilter:
    states = []
    for number in dict.fromkeys(request.states):
        state = state_from_proto(number)
        if state is None:
            raise InvalidRequest.of("states", f"holds {number}; allowed: states other than JOB_STATE_UNSPECIFIED")
        states.append(state)
    if len(request.labels) > MAX_LABELS:
        raise InvalidRequest.of("labels", f"has {len(request.labels):,} items; allowed: at most {MAX_LABELS}")
    for field, most in (("job_id_prefix", _MAX_JOB_ID), ("name", _MAX_NAME), ("owner", _MAX_OWNER)):
        if len(getattr(request, field)) > most:
            raise InvalidRequest.of(field, f"has {len(getattr(request, field)):,} characters; allowed: at most {most}")
    return JobFilter(tuple(states), dict(request.labels), request.job_id_prefix, request.name, request.owner)
