"""CheckpointService: find checkpoints in the store, and send their files."""

from __future__ import annotations

from collections.abc import AsyncIterator

from lockstep.contract.checkpoints import MODEL_FILE
from lockstep.server.checkpoints.files import CheckpointFileReader, where
from lockstep.server.coordinator.coordinator import Coordinator
from lockstep.server.errors import CheckpointNotFound
from lockstep.server.jobs.records import StoredCheckpoint
from lockstep.server.process.file_pool import FilePool
from lockstep.server.rpc.interceptors import Context, as_written
from lockstep.server.rpc.job_service import required_job_id
from lockstep.server.rpc.messages import checkpoint_to_proto, file_to_proto
from lockstep.server.rpc.paging import make_token, not_negative, page_size, read_token
from lockstep.server.store import CheckpointStore
from lockstep.v1.checkpoint_service_pb2 import (
    DownloadCheckpointRequest,
    DownloadCheckpointResponse,
    DownloadHeader,
    ListCheckpointsRequest,
    ListCheckpointsResponse,
)
from lockstep.v1.checkpoint_service_pb2_grpc import CheckpointServiceServicer


class CheckpointService(CheckpointServiceServicer):
    """List the checkpoints of jobs and send their files."""

    def __init__(self, coordinator: Coordinator, checkpoints: CheckpointStore, files: FilePool) -> None:
        self._coordinator = coordinator
        self._checkpoints = checkpoints
        self._files = files

    async def ListCheckpoints(self, request: ListCheckpointsRequest, context: Context) -> ListCheckpointsResponse:
        job_id = required_job_id(request.job_id)
        limit = page_size(request.page_size, default=100, most=1_000)
        scope = ["checkpoints", job_id]
        position = read_token(request.page_token, "page_token", scope, (int,))
        await self._coordinator.get(job_id)

        def write(checkpoints: list[StoredCheckpoint]) -> bytes:
            response = ListCheckpointsResponse(checkpoints=map(checkpoint_to_proto, checkpoints[:limit]))
            if len(checkpoints) > limit:
                response.next_page_token = make_token([checkpoints[limit - 1].step], scope)
            return response.SerializeToString()

        before = None if position is None else position[0]
        page = await self._checkpoints.list_checkpoints(job_id, before=before, limit=limit + 1, make=write)
        await self._coordinator.get(job_id)  # else it was deleted meanwhile
        return as_written(ListCheckpointsResponse, page)

    async def DownloadCheckpoint(
        self, request: DownloadCheckpointRequest, context: Context
    ) -> AsyncIterator[DownloadCheckpointResponse]:
        checkpoint = await self._find(request)
        name, run = request.file_name or MODEL_FILE, self._files.run
        what = f"reading {where(checkpoint, name)}"
        reader = await run(CheckpointFileReader, checkpoint, name, what=what, drop=CheckpointFileReader.close)
        try:
            header = DownloadHeader(checkpoint=checkpoint_to_proto(checkpoint), file=file_to_proto(reader.file))
            yield DownloadCheckpointResponse(header=header)
            while await run(reader.check, what=what):
                yield DownloadCheckpointResponse(chunk=b"")  # a sign of life: clients give up on a silent stream
            while chunk := await run(reader.read, what=what):
                yield DownloadCheckpointResponse(chunk=chunk)
        finally:
            self._files.leave(reader.close)

    async def _find(self, request: DownloadCheckpointRequest) -> StoredCheckpoint:
        job_id = required_job_id(request.job_id)
        step = not_negative(request.step, "step") if request.HasField("step") else None
        await self._coordinator.get(job_id)
        checkpoint = await self._checkpoints.get_checkpoint(job_id, step)
        if checkpoint is None:
            which = "no checkpoint yet" if step is None else f"no checkpoint of step {step}"
            raise CheckpointNotFound(f"{job_id} has {which}; list its checkpoints to see those that are kept")
        return checkpoint
