"""The face of the package: a client of one Lockstep server."""

from __future__ import annotations

import functools
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from lockstep.client._connection import Connection
from lockstep.client.cluster import Cluster, Node
from lockstep.client.errors import InvalidSpec, LockstepError, NotFound, ResourceExhausted
from lockstep.client.job import Job
from lockstep.client.spec import SpecLike, load_right_spec
from lockstep.client.types import CatalogEntry, JobState
from lockstep.v1 import catalog_service_pb2, cluster_service_pb2, job_service_pb2
from lockstep.v1.catalog_service_pb2_grpc import CatalogServiceStub
from lockstep.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from lockstep.v1.cluster_service_pb2_grpc import ClusterServiceStub
from lockstep.v1.job_service_pb2_grpc import JobServiceStub
from lockstep.v1.log_service_pb2_grpc import LogServiceStub
from lockstep.v1.metrics_service_pb2_grpc import MetricsServiceStub

DEFAULT_TARGET = "127.0.0.1:50051"
_PAGE_SIZE = 1000
_LONGEST_ID, _LONGEST_NAME = 64, 63
_MOST_SHOWN = 5
# How the server says it, and how gRPC itself does, which gives no reason: a message far too large never gets through.
_SPEC_TOO_LARGE = ("MESSAGE_TOO_LARGE", "")


class Client:
    """A client of one Lockstep server.

    Calls have a deadline of 10 seconds and are repeated while the server does not answer; all of them may safely be.
    A download has no deadline as a whole; it is given up when nothing comes for 60 seconds.
    A client may be shared between threads.

    Args:
        target: address of the server, host:port, or whatever gRPC takes for one, such as unix:/run/lockstep.sock.
            Default: LOCKSTEP_TARGET, or 127.0.0.1:50051.
        token: sent with every call, for whatever stands before the server; the server itself asks for none. Default:
            LOCKSTEP_TOKEN, or none.

    Raises, from every method that calls the server: LockstepError; see lockstep.client.errors.
    """

    def __init__(self, target: str | None = None, token: str | None = None) -> None:
        self.target = _address(target or os.environ.get("LOCKSTEP_TARGET", ""))
        self._connection = Connection(self.target, token or os.environ.get("LOCKSTEP_TOKEN"))
        self._jobs = JobServiceStub(self._connection.channel)
        self._metrics = MetricsServiceStub(self._connection.channel)
        self._logs = LogServiceStub(self._connection.channel)
        self._catalog = CatalogServiceStub(self._connection.channel)
        self._checkpoints = CheckpointServiceStub(self._connection.channel)
        self._cluster = ClusterServiceStub(self._connection.channel)

    def __repr__(self) -> str:
        return f"<Client of {self.target}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Jobs go on."""
        self._connection.close()

    def submit_job(self, spec: SpecLike, *, request_id: str | None = None, validate_only: bool = False) -> Job:
        """Submit a job. It is stored durably when this returns.

        Args:
            spec: a JobSpec, a mapping of the same form, or the path of a YAML or JSON file.
            request_id: makes a repeated call safe: the same request_id with the same spec is the same job.
                Default: a new one, so that the repetitions inside this call are safe.
            validate_only: check and resolve the spec, store nothing; the job returned has no job_id.

        Raises:
            InvalidSpec: the spec cannot be read, breaks a rule, is refused or is too large; `violations` names every
                field at fault. What the contract knows is checked before the call.
            AlreadyExists: the request_id was used with another spec.
            FailedPrecondition: the cluster is too small for the job.
        """
        request = job_service_pb2.SubmitJobRequest(
            spec=load_right_spec(spec), request_id=request_id or str(uuid.uuid4()), validate_only=validate_only
        )
        try:
            return Job(self, self._connection.call(self._jobs.SubmitJob, request, invalid_argument=InvalidSpec))
        except ResourceExhausted as error:
            if error.reason not in _SPEC_TOO_LARGE:
                raise
            raise InvalidSpec(str(error), code=error.code, reason=error.reason) from error

    def get_job(self, job_id: str) -> Job:
        """Read one job.

        Raises:
            NotFound: there is no such job.
        """
        return Job(self, self._connection.call(self._jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job_id)))

    def find_job(self, name: str) -> Job:
        """Read one job by its id, by the beginning of its id, or by its name, where only one job fits.

        Raises:
            NotFound: none fits, or more than one; the message lists those that do.
        """
        try:
            return self.get_job(name)
        except NotFound as missing:
            return self._guess_job(name, missing)

    def _guess_job(self, name: str, missing: NotFound) -> Job:
        requests = (
            job_service_pb2.ListJobsRequest(job_id_prefix=name[:_LONGEST_ID], page_size=_PAGE_SIZE),
            job_service_pb2.ListJobsRequest(name=name[:_LONGEST_NAME], page_size=_PAGE_SIZE),
        )
        found: dict[str, Job] = {}
        unseen = 0
        for request in requests if name else ():
            page = self._connection.call(self._jobs.ListJobs, request)
            fitting = [job for job in page.jobs if job.job_id.startswith(name) or job.spec.name == name]
            found |= {job.job_id: Job(self, job) for job in fitting}
            if len(fitting) == len(page.jobs):  # else a server of an earlier version has listed and counted all jobs
                unseen += max(0, page.total_size - len(fitting))
        if not found:
            raise missing
        total = len(found) + unseen
        if total > 1:
            lines = [f"\n  {job.job_id}  {job.name}  {job.state.lower()}" for job in found.values()][:_MOST_SHOWN]
            more = f"\n  and {total - len(lines):,} more" if total > len(lines) else ""
            message = f"{name} may be any of {total:,} jobs; name one by its id:{''.join(lines)}{more}"
            raise NotFound(message, code=missing.code, reason=missing.reason) from missing
        return next(iter(found.values()))

    def list_jobs(
        self,
        states: Iterable[JobState | str] | JobState | str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        owner: str | None = None,
    ) -> list[Job]:
        """Read jobs, newest first.

        Args:
            states: only jobs in one of these states, or in this one. Default: all.
            labels: only jobs that carry all of these labels. Default: all.
            limit: at most so many, the newest. Default: all.
            owner: only jobs that this principal has submitted. Default: all.
        """
        return self._list_jobs(states, labels, limit, owner)[0]

    def _newest_jobs(self, job_id_prefix: str, limit: int) -> list[Job]:
        """The newest jobs whose ids begin so."""
        request = job_service_pb2.ListJobsRequest(job_id_prefix=job_id_prefix, page_size=limit)
        found = self._connection.call(self._jobs.ListJobs, request).jobs
        # A server of an earlier version lists all jobs.
        return [Job(self, job) for job in found if job.job_id.startswith(job_id_prefix)]

    def _list_jobs(
        self,
        states: Iterable[JobState | str] | JobState | str | None,
        labels: Mapping[str, str] | None,
        limit: int | None,
        owner: str | None,
    ) -> tuple[list[Job], int]:
        """See list_jobs; and how many jobs there are in all, without the limit."""
        wanted = [states] if isinstance(states, str) else states or ()
        request = job_service_pb2.ListJobsRequest(
            states=[JobState(state.upper()).to_proto() for state in wanted],
            labels=dict(labels or {}),
            owner=owner or "",
        )
        jobs: list[Job] = []
        total = 0
        while True:
            request.page_size = _PAGE_SIZE if limit is None else max(1, min(_PAGE_SIZE, limit - len(jobs)))
            page = self._connection.call(self._jobs.ListJobs, request)
            jobs += (Job(self, job) for job in page.jobs)
            total = max(total, page.total_size, len(jobs))
            if not page.next_page_token or (limit is not None and len(jobs) >= limit):
                return jobs[:limit], total
            request.page_token = page.next_page_token

    def list_models(self) -> list[CatalogEntry]:
        """What `model` may be in a spec."""
        response = self._connection.call(self._catalog.ListModels, catalog_service_pb2.ListModelsRequest())
        return [CatalogEntry.from_proto(entry) for entry in response.models]

    def list_datasets(self) -> list[CatalogEntry]:
        """What `data` may be in a spec."""
        response = self._connection.call(self._catalog.ListDatasets, catalog_service_pb2.ListDatasetsRequest())
        return [CatalogEntry.from_proto(entry) for entry in response.datasets]

    def list_optimizers(self) -> list[CatalogEntry]:
        """What `optimizer` may be in a spec."""
        response = self._connection.call(self._catalog.ListOptimizers, catalog_service_pb2.ListOptimizersRequest())
        return [CatalogEntry.from_proto(entry) for entry in response.optimizers]

    def get_cluster(self) -> Cluster:
        """What the cluster has in all, how much of that is in use, and whether jobs can start."""
        return Cluster.from_proto(
            self._connection.call(self._cluster.GetCluster, cluster_service_pb2.GetClusterRequest())
        )

    def list_nodes(self) -> list[Node]:
        """The nodes of the cluster with their worker processes, in the order of their ids."""
        request = cluster_service_pb2.ListNodesRequest()
        nodes: list[Node] = []
        while True:
            page = self._connection.call(self._cluster.ListNodes, request)
            nodes += map(Node.from_proto, page.nodes)
            if not page.next_page_token:
                return nodes
            request.page_token = page.next_page_token


def _address(target: str) -> str:
    """The address that gRPC is to have: what stands in a URL besides it is left out, and the port is added.

    Raises:
        LockstepError: the URL asks for TLS.
    """
    target = target.strip() or DEFAULT_TARGET
    match = re.fullmatch(r"(?:(http|https|grpc|grpcs)://)?([^/]+?)/?", target)
    if match is None:
        return target
    scheme, address = match.groups()
    if scheme in ("https", "grpcs"):
        raise LockstepError(f"the target is {target}, and a Lockstep server speaks no TLS; write {address}")
    has_port = ":" in address.rpartition("]")[2]
    return address if has_port else f"{address}:{DEFAULT_TARGET.rpartition(':')[2]}"


def submit_job(spec: SpecLike, *, request_id: str | None = None, validate_only: bool = False) -> Job:
    """Submit a job to the server that LOCKSTEP_TARGET names; see Client.submit_job."""
    client = _shared_client(os.environ.get("LOCKSTEP_TARGET"), os.environ.get("LOCKSTEP_TOKEN"))
    return client.submit_job(spec, request_id=request_id, validate_only=validate_only)


@functools.cache
def _shared_client(target: str | None, token: str | None) -> Client:
    """One client per server, made when it is first needed and kept: its jobs go on using it."""
    return Client(target, token)
