from __future__ import annotations

import re
from typing import Any

import grpc
import pytest

from lockstep.client import Client, errors
from lockstep.client.cli import exit_codes
from lockstep.client.errors import (
    EXCEPTION_BY_STATUS,
    InvalidRequest,
    InvalidSpec,
    LockstepError,
    Unavailable,
    Violation,
)
from tests.support.scripted_server import UNAVAILABLE, Refusal, ScriptedServer, a_job, violations
from tests.support.specs import DIGITS

STATUSES = [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK]
EXCEPTIONS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LockstepError)]


def test_every_status_code_becomes_a_client_exception() -> None:
    assert {grpc.StatusCode.OK, *EXCEPTION_BY_STATUS} == set(grpc.StatusCode)


@pytest.mark.parametrize("status", [status for status in STATUSES if status is not grpc.StatusCode.UNAVAILABLE])
def test_a_status_arrives_as_its_exception_with_the_servers_words(
    server: ScriptedServer, client: Client, status: grpc.StatusCode
) -> None:
    server.on("GetJob", Refusal(status, "there is a reason", violations("SOME_REASON")[:1]))
    with pytest.raises(EXCEPTION_BY_STATUS[status]) as caught:
        client.get_job("j-1")
    assert str(caught.value) == "there is a reason"
    assert caught.value.code is status
    assert caught.value.reason == "SOME_REASON"
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_the_docstring_draws_every_exception_at_its_place() -> None:
    drawn: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│ ]*(?:[├└]── )?)([A-Z]\w+)", line):
            depth = len(found[1]) // 4
            stack = [*[entry for entry in stack if entry[0] < depth], (depth, found[2])]
            drawn[found[2]] = stack[-2][1] if len(stack) > 1 else "Exception"
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in EXCEPTIONS}


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_every_exception_has_an_exit_code(kind: Any) -> None:
    assert any(base in exit_codes.BY_ERROR for base in kind.__mro__)


def test_a_refused_spec_names_every_field_at_fault(server: ScriptedServer, client: Client) -> None:
    details = violations("SPEC_INVALID", training__batch_size="must be at least 1, is 0", name="must not be empty")
    server.on("SubmitJob", Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid spec", details))
    with pytest.raises(InvalidSpec) as caught:
        client.submit_job(DIGITS)
    assert caught.value.violations == [
        ("training.batch_size", "must be at least 1, is 0"),
        ("name", "must not be empty"),
    ]
    assert caught.value.reason == "SPEC_INVALID"
    assert str(caught.value) == (
        "the spec has 2 errors:\n  training.batch_size: must be at least 1, is 0\n  name: must not be empty"
    )


def test_a_single_violation_is_a_single_line(server: ScriptedServer, client: Client) -> None:
    details = violations("SPEC_INVALID", training__seed="must be at least 0, is -1")
    server.on("SubmitJob", Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid spec", details))
    with pytest.raises(InvalidSpec, match=r"^training\.seed: must be at least 0, is -1$"):
        client.submit_job(DIGITS)


def test_a_violation_that_names_its_field_is_not_told_with_the_field_twice() -> None:
    assert str(InvalidSpec([Violation("training.seed", "training.seed is -1")])) == "training.seed is -1"
    assert str(InvalidSpec([Violation("training.seed", "is -1")])) == "training.seed: is -1"


def test_an_invalid_argument_of_another_call_is_no_invalid_spec(server: ScriptedServer, client: Client) -> None:
    server.on("GetJob", Refusal(grpc.StatusCode.INVALID_ARGUMENT, "job_id: must not be empty"))
    with pytest.raises(InvalidRequest, match=r"^job_id: must not be empty$") as caught:
        client.get_job("")
    assert not isinstance(caught.value, InvalidSpec)


def test_details_that_cannot_be_read_leave_the_plain_status(server: ScriptedServer, client: Client) -> None:
    class Garbled(Refusal):
        def end(self, context: grpc.ServicerContext) -> None:
            context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
            context.abort(self.code, self.message)

    server.on("GetJob", Garbled(grpc.StatusCode.NOT_FOUND, "there is no job j-1"))
    with pytest.raises(errors.NotFound, match=r"^there is no job j-1$"):
        client.get_job("j-1")


def test_an_address_without_a_server_is_named_with_what_to_do(unreachable: str) -> None:
    with Client(unreachable) as client, pytest.raises(Unavailable) as caught:
        client.get_job("j-1")
    assert str(caught.value) == (
        f"no Lockstep server answers at {unreachable}; start one with `lockstep serve` or set LOCKSTEP_TARGET "
        f"to the address of a running one"
    )


def test_a_server_that_went_away_is_told_from_one_that_never_was(
    server: ScriptedServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on("GetJob", a_job(), UNAVAILABLE)
    client.get_job("j-1")
    monkeypatch.setattr("lockstep.client._connection.RECONNECT_S", 0.2)
    with pytest.raises(
        Unavailable, match=r"^the Lockstep server at 127.0.0.1:\d+ no longer answers: it has stopped"
    ) as caught:
        client.get_job("j-1")
    assert "going away" not in str(caught.value)


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN])
def test_a_server_that_breaks_off_a_call_as_it_stops_is_told_without_the_words_of_grpc(
    server: ScriptedServer, client: Client, code: grpc.StatusCode
) -> None:
    server.on("GetJob", Refusal(code, "Stream removed {grpc_status:1}"))
    with pytest.raises(LockstepError, match=r"^the Lockstep server at .* has broken off the call, .*; try again$"):
        client.get_job("j-1")


def test_a_closed_client_says_so(server: ScriptedServer) -> None:
    client = Client(server.target)
    client.close()
    with pytest.raises(LockstepError, match=r"^this client is closed$"):
        client.get_job("j-1")
