from __future__ import annotations

import json

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2, status_pb2

from lockstep.server import logging
from lockstep.server.errors import InvalidSpec, LockstepError, MalformedMessage, NotFound, Violation
from lockstep.server.rpc.status import STATUS_BY_ERROR, to_status


def subclasses(of: type[LockstepError]) -> set[type[LockstepError]]:
    return {of, *(deeper for direct in of.__subclasses__() for deeper in subclasses(direct))}


def test_every_error_of_ours_has_a_status_and_no_other_has() -> None:
    assert set(STATUS_BY_ERROR) == subclasses(LockstepError) - {LockstepError}


def test_reasons_are_stable_words() -> None:
    for error in STATUS_BY_ERROR:
        assert error.reason == error.reason.upper()
        assert error.reason.replace("_", "").isalpha()


def details_of(status: status_pb2.Status) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for message in (info, bad_request):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    return info, bad_request


def test_fields_at_fault_travel_as_details() -> None:
    code, status = to_status(InvalidSpec([Violation("a.b", "a.b is 0; x"), Violation("c", "c: missing")]))
    info, bad_request = details_of(status)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert (info.reason, info.domain) == ("SPEC_INVALID", "lockstep")
    assert [(v.field, v.description) for v in bad_request.field_violations] == [
        ("a.b", "a.b is 0; x"),
        ("c", "c: missing"),
    ]
    assert status.message == "the spec has 2 errors: a.b is 0; x; c: missing"


def test_an_error_without_fields_has_a_reason_only() -> None:
    _, status = to_status(NotFound("there is no job x"))
    assert len(status.details) == 1
    assert details_of(status)[0].reason == "JOB_NOT_FOUND"


def test_bytes_that_are_no_message_are_told_whose_message_was_expected() -> None:
    assert "not a valid lockstep.v1.GetJobRequest message" in MalformedMessage("lockstep.v1.GetJobRequest").message
    assert MalformedMessage("grpc.health.v1.HealthCheckRequest").message.endswith("generated from grpc.health.v1")


def test_the_log_of_an_error_holds_no_values_of_variables(capsys: pytest.CaptureFixture[str]) -> None:
    logging.configure("json")
    password = "pass" + "word"
    try:
        raise ValueError(len(password))
    except ValueError:
        structlog.get_logger().exception("it broke")
    event = json.loads(capsys.readouterr().err)
    assert event["exception"][0]["exc_type"] == "ValueError"
    assert "password" not in json.dumps(event)


def test_a_thousand_violations_still_fit_into_a_trailer() -> None:
    violations = [Violation(f"labels[{i}]", f"labels[{i}] is wrong " + "\u00e4" * 100) for i in range(1000)]
    _, status = to_status(InvalidSpec(violations))
    assert status.ByteSize() < 7_000
    assert details_of(status)[1].field_violations[-1].description.endswith("more")
