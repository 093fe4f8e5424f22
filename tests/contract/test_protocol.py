from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_database, descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from lockstep.server.application import Application
from lockstep.server.settings import Settings, StartupError
from lockstep.v1 import options_pb2
from lockstep.v1.catalog_service_pb2 import ListDatasetsRequest, ListModelsRequest, ListOptimizersRequest
from lockstep.v1.job_service_pb2 import ListJobsRequest, SubmitJobRequest
from tests.support.server import Running, digits_spec, fetch, serving, status_of

METHODS = (
    "/lockstep.v1.JobService/SubmitJob",
    "/lockstep.v1.JobService/ListJobs",
    "/lockstep.v1.MetricsService/ListMetrics",
    "/lockstep.v1.ClusterService/ListNodes",
    "/lockstep.v1.InternalService/ReportProgress",
    "/lockstep.v1.InternalService/ReportLogs",
)
PYTHON_WORDS = ("Traceback", "Exception", "Error parsing", "DecodeError", "None", "object at", "self")


def raw(method: Any) -> Any:
    """A method that is sent bytes as they are, of which the types know nothing."""
    return method


async def test_bytes_that_are_no_message_are_refused_in_words_of_ours(tmp_path: Path) -> None:
    chance = random.Random(7)
    async with serving(tmp_path) as server:
        for method in METHODS:
            for size in (1, 10, 1000):
                garbage = b"\xff" + chance.randbytes(size)
                error = await status_of(raw(server.channel.unary_unary(method))(garbage))
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "is not a valid lockstep.v1." in error.details()
                assert not [word for word in PYTHON_WORDS if word in error.details()]
        for method in (
            "/lockstep.v1.JobService/WatchJob",
            "/lockstep.v1.MetricsService/StreamMetrics",
            "/lockstep.v1.LogService/StreamLogs",
            "/lockstep.v1.CheckpointService/DownloadCheckpoint",
        ):
            error = await status_of(raw(server.channel.unary_stream(method))(b"\xff\xff").read())
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_random_bytes_never_bring_the_server_to_fail(tmp_path: Path) -> None:
    chance = random.Random(11)
    spec = SubmitJobRequest(spec=digits_spec()).SerializeToString()
    async with serving(tmp_path) as server:
        for _ in range(300):
            data = bytearray(spec)
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            try:
                await raw(server.channel.unary_unary("/lockstep.v1.JobService/SubmitJob"))(bytes(data))
            except grpc.aio.AioRpcError as error:
                assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)


@pytest.mark.parametrize("size", [4_200_000, 5_000_000, 20_000_000])
async def test_a_spec_of_many_megabytes_is_too_large(server: Running, size: int) -> None:
    spec = digits_spec(name="x" * size)
    error = await status_of(server.jobs.SubmitJob(SubmitJobRequest(spec=spec)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    if size < 4_250_000:  # beyond that gRPC refuses it by itself
        assert "allowed: at most 4,194,304" in error.details()


async def test_an_unknown_method_is_unimplemented(server: Running) -> None:
    error = await status_of(raw(server.channel.unary_unary("/lockstep.v1.JobService/Nothing"))(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_shows_the_public_services_under_both_names(server: Running, version: str) -> None:
    reflect = server.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    requests = [
        ServerReflectionRequest(list_services=""),
        ServerReflectionRequest(file_containing_symbol="lockstep.v1.JobService"),
    ]
    listed, described = [response async for response in reflect(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    services = ("Job", "Metrics", "Checkpoint", "Cluster", "Catalog")
    assert {f"lockstep.v1.{service}Service" for service in services} < names
    assert not any("Internal" in name for name in names)
    files = {
        descriptor_pb2.FileDescriptorProto.FromString(data).name
        for data in described.file_descriptor_response.file_descriptor_proto
    }
    assert {"lockstep/v1/job_service.proto", "lockstep/v1/job_spec.proto"} <= files


async def test_reflection_shows_the_rules_of_fields_and_kinds(server: Running) -> None:
    reflect = server.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    number = options_pb2.rule.number
    extended = {"containing_type": "google.protobuf.FieldOptions", "extension_number": number}
    requests = [
        ServerReflectionRequest(file_containing_symbol="lockstep.v1.JobSpec"),
        ServerReflectionRequest(file_containing_extension=extended),
        ServerReflectionRequest(all_extension_numbers_of_type="google.protobuf.FieldOptions"),
    ]
    spec, options, numbers = [response async for response in reflect(iter(requests))]
    assert {number, options_pb2.kind_facts.number} <= set(numbers.all_extension_numbers_response.extension_number)
    assert options.file_descriptor_response.file_descriptor_proto
    # A stranger knows nothing but these files.
    files = descriptor_database.DescriptorDatabase()
    for data in spec.file_descriptor_response.file_descriptor_proto:
        files.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
    pool = descriptor_pool.DescriptorPool(files)
    rule, facts = (pool.FindExtensionByName(f"lockstep.v1.{name}") for name in ("rule", "kind_facts"))
    read = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.FieldOptions")).FromString
    rate = pool.FindFieldByName("lockstep.v1.SgdOptimizer.learning_rate").GetOptions().SerializeToString()
    lenet = pool.FindFieldByName("lockstep.v1.ModelSpec.lenet").GetOptions().SerializeToString()
    assert (read(rate).Extensions[rule].at_most, read(rate).Extensions[rule].required) == (1000, True)  # type: ignore[index]
    assert read(lenet).Extensions[facts].least_image_side == 12  # type: ignore[index]


async def test_health_is_told_for_all_and_for_each_service(server: Running) -> None:
    health = HealthStub(server.channel)
    services = [f"lockstep.v1.{name}Service" for name in ("Job", "Metrics", "Checkpoint", "Cluster", "Catalog")]
    for service in ("", *services):
        response = await health.Check(HealthCheckRequest(service=service))
        assert response.status == HealthCheckResponse.SERVING
    error = await status_of(health.Check(HealthCheckRequest(service="nobody")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_the_catalogue_is_served(server: Running) -> None:
    models = await server.catalog.ListModels(ListModelsRequest())
    datasets = await server.catalog.ListDatasets(ListDatasetsRequest())
    optimizers = await server.catalog.ListOptimizers(ListOptimizersRequest())
    assert (len(models.models), len(datasets.datasets), len(optimizers.optimizers)) == (4, 3, 2)


async def test_prometheus_sees_jobs_queue_submits_and_calls(server: Running) -> None:
    await server.jobs.SubmitJob(SubmitJobRequest(spec=digits_spec()))
    await status_of(server.jobs.ListJobs(ListJobsRequest(page_size=-1)))
    status, text = await fetch(server.application.http_address, "/metrics")
    assert status == 200
    for line in (
        'lockstep_jobs{state="queued"} 1.0',
        'lockstep_jobs{state="running"} 0.0',
        'lockstep_jobs{state="pausing"} 0.0',
        'lockstep_jobs{state="paused"} 0.0',
        "lockstep_queue_depth 1.0",
        "lockstep_jobs_submitted_total 1.0",
        'grpc_server_started_total{grpc_method="SubmitJob",grpc_service="lockstep.v1.JobService"} 1.0',
        'grpc_server_handled_total{grpc_code="OK",grpc_method="SubmitJob",grpc_service="lockstep.v1.JobService"}',
        'grpc_server_handled_total{grpc_code="INVALID_ARGUMENT",grpc_method="ListJobs"',
        "grpc_server_handling_seconds_bucket",
        "lockstep_build_info{engine_version=",
    ):
        assert line in text
    assert await fetch(server.application.http_address, "/healthz") == (200, "ok\n")
    assert (await fetch(server.application.http_address, "/else"))[0] == 404


async def test_a_second_server_on_the_same_folder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    async with serving(tmp_path):
        with pytest.raises(StartupError, match=f"in use by the server with pid {os.getpid()}"):
            async with serving(tmp_path):
                pass


@pytest.mark.parametrize("option", ["listen", "http"])
async def test_a_port_that_is_taken_is_refused_and_nothing_is_left(tmp_path: Path, option: str) -> None:
    async with serving(tmp_path / "a") as first:
        taken = {"listen": first.application.grpc_address, "http": first.application.http_address}[option]
        given: dict[str, Any] = {"listen": "127.0.0.1:0", "http": "127.0.0.1:0"} | {option: taken}
        second = Application(Settings(data_dir=tmp_path / "b", **given), keeps_cluster=False)
        with pytest.raises(StartupError, match=f"cannot listen on {taken}.*--{option}"):
            await second.start()
    async with serving(tmp_path / "b"):
        pass


async def test_the_addresses_stand_in_a_file_while_the_server_runs(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert server.application.grpc_address in (tmp_path / "server.json").read_text()
    assert not (tmp_path / "server.json").exists()
