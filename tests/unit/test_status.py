"""Statuses: every error has one, with the details that a caller's library reads."""

import inspect
import re
from collections.abc import Iterator
from datetime import timedelta

import grpc
import pytest
from betrace_kms_server.core import errors
from betrace_kms_server.core.errors import (
    BudgetExceeded,
    CallerNotAllowed,
    DoesNotOpen,
    InvalidRequest,
    KmsError,
    NoBranchKeyStore,
    QuotaExceeded,
    Throttled,
)
from betrace_kms_server.rpc import status
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

REQUEST_ID = "0123456789abcdef"
DETAILS: tuple[type[Message], ...] = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.RequestInfo,
    error_details_pb2.RetryInfo,
)
CONTRACT = {
    "InvalidRequest": "INVALID_ARGUMENT",
    "DoesNotOpen": "INVALID_ARGUMENT",
    "NoBranchKeyStore": "FAILED_PRECONDITION",
    "NoSigningKey": "NOT_FOUND",
    "MasterKeyUnusable": "FAILED_PRECONDITION",
    "Locked": "FAILED_PRECONDITION",
    "KeyDamaged": "DATA_LOSS",
    "AccessDenied": "PERMISSION_DENIED",
    "Throttled": "RESOURCE_EXHAUSTED",
    "QuotaExceeded": "RESOURCE_EXHAUSTED",
    "BudgetExceeded": "RESOURCE_EXHAUSTED",
    "KmsUnreachable": "UNAVAILABLE",
    "CredentialsUnavailable": "UNAVAILABLE",
    "StoreUnavailable": "UNAVAILABLE",
}


def leaves(of: type[KmsError]) -> Iterator[type[KmsError]]:
    below = [kind for kind in of.__subclasses__() if kind.__module__ == errors.__name__]
    if not below:
        yield of
    for kind in below:
        yield from leaves(kind)


LEAVES = sorted(set(leaves(KmsError)), key=lambda kind: kind.__name__)
each_error = pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)


def example(kind: type[KmsError]) -> KmsError:
    if kind is CallerNotAllowed:
        return kind("backend", "SignSpan")
    return (
        kind()
        if kind in (BudgetExceeded, DoesNotOpen, NoBranchKeyStore, QuotaExceeded)
        else kind("do this next", metadata={"limit": "4096"})
    )


def details_of(answer: grpc.Status) -> list[Message]:
    """Unpack what a client finds in the trailing metadata."""
    ((name, packed),) = answer.trailing_metadata
    assert "grpc-status-details-bin" == name
    rich = status_pb2.Status.FromString(packed)
    assert (answer.code.value[0], answer.details) == (rich.code, rich.message)
    found = []
    for detail in rich.details:
        (kind,) = (kind for kind in DETAILS if detail.Is(kind.DESCRIPTOR))
        message = kind()
        detail.Unpack(message)
        found.append(message)
    return found


def drawn_tree() -> dict[str, str | None]:
    """Read the tree in the docstring of errors.py: name -> name of its parent, None at the margin."""
    parents: dict[str, str | None] = {}
    above: list[str] = []
    block = inspect.cleandoc(errors.__doc__ or "").split("::\n\n")[1].split("\n\n")[0]
    for line in block.splitlines():
        drawn = re.fullmatch(r"    ((?:[│ ]   )*(?:[├└]── )?)(\w+)(?:  +\S.*)?", line)
        assert drawn, f"no line of a tree: {line!r}"
        depth, name = len(drawn[1]) // 4, drawn[2]
        above[depth:] = [name]
        parents[name] = above[depth - 1] if depth else None
    return parents


@each_error
def test_every_error_has_a_status(kind: type[KmsError]) -> None:
    """A new error must be put into the table, or its callers would see an internal error."""
    assert isinstance(status.STATUS.get(kind), grpc.StatusCode)


def test_the_table_has_errors_only() -> None:
    """The table names each error once and nothing that is no error, nor one that is never raised itself."""
    assert set(LEAVES) == set(status.STATUS)


def test_the_statuses_of_the_contract() -> None:
    """The status of a condition is part of the contract with every caller."""
    assert CONTRACT.items() <= {kind.__name__: code.name for kind, code in status.STATUS.items()}.items()


@each_error
def test_details_of_an_error(kind: type[KmsError]) -> None:
    """An error becomes its status, its own message, ErrorInfo, RequestInfo and, where it may pass, RetryInfo."""
    error = example(kind)
    answer = status.of_error(error, REQUEST_ID)
    assert (status.STATUS[kind], error.message) == (answer.code, answer.details)
    expected: list[Message] = [
        error_details_pb2.ErrorInfo(reason=kind.reason, domain="kms.betrace.dev", metadata=error.metadata),
        error_details_pb2.RequestInfo(request_id=REQUEST_ID),
    ]
    if kind.retry_after is not None:
        delay = timedelta(seconds=kind.retry_after)
        expected.append(error_details_pb2.RetryInfo(retry_delay=delay))
    assert expected == details_of(answer)


@each_error
def test_who_may_try_again(kind: type[KmsError]) -> None:
    """A delay to try again comes with exactly the statuses that pass by themselves."""
    passes = status.STATUS[kind] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert passes == (kind.retry_after is not None and kind.retry_after > 0)


def test_a_delay_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delay is told to the millisecond."""
    monkeypatch.setattr(Throttled, "retry_after", 1.2501)
    expected = error_details_pb2.RetryInfo()
    expected.retry_delay.FromMilliseconds(1251)
    assert expected == details_of(status.of_error(Throttled("slow down"), REQUEST_ID))[-1]
    assert expected.retry_delay == status.item_status(Throttled("slow down")).retry_delay


def test_a_defect_tells_nothing() -> None:
    """An error that is not ours to tell is one text, and an id under which the log has it."""
    answer = status.of_defect(REQUEST_ID)
    assert (grpc.StatusCode.INTERNAL, "internal error") == (answer.code, answer.details)
    assert [
        error_details_pb2.ErrorInfo(reason="INTERNAL", domain="kms.betrace.dev"),
        error_details_pb2.RequestInfo(request_id=REQUEST_ID),
    ] == details_of(answer)


@each_error
def test_reasons_are_well_formed(kind: type[KmsError]) -> None:
    """A reason is at most 63 characters of [A-Z][A-Z0-9_]+[A-Z0-9] (google/rpc/error_details.proto)."""
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]", kind.reason)


def test_reasons_are_told_apart() -> None:
    """A program can tell every condition by its reason."""
    assert len(LEAVES) == len({kind.reason for kind in LEAVES})


def test_the_drawn_tree_is_the_real_one() -> None:
    """The tree in the docstring of errors.py has exactly the classes that there are, each below its parent."""
    real = {
        name: None if kind.__base__ is Exception else kind.__base__.__name__
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__ == errors.__name__ and kind.__base__
    }
    assert real == drawn_tree()


def test_there_is_one_text_for_what_does_not_open() -> None:
    """DoesNotOpen takes no text and no metadata, so that no two of them can differ."""
    assert str(DoesNotOpen()) == str(DoesNotOpen())
    assert {} == DoesNotOpen().metadata
    assert ["self"] == list(inspect.signature(DoesNotOpen.__init__).parameters)


def test_metadata_is_a_copy() -> None:
    """What an error tells does not change when the caller's mapping does."""
    metadata = {"limit": "1"}
    error = InvalidRequest("too large", metadata=metadata)
    metadata["limit"] = "2"
    assert ({"limit": "1"}, "too large", "too large") == (error.metadata, error.message, str(error))
