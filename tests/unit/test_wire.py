"""What is counted in a request before it is parsed: bounds that hold, and nothing else that is refused."""

import os
import random

import pytest
from betrace.kms.v1 import key_management_pb2 as pb
from betrace.kms.v1 import span_pb2
from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.rpc import wire
from betrace_kms_server.rpc.wire import Unreadable, check_of
from google.protobuf.message import DecodeError, Message

_SERVICE = pb.DESCRIPTOR.services_by_name["KeyManagementService"]
BIG = "x" * wire.SMALL_BYTES


def checked(request: Message | bytes, method: str) -> None:
    """Check a request of a method."""
    check = check_of(f"/{_SERVICE.full_name}/{method}")
    assert check is not None
    check(request if isinstance(request, bytes) else request.SerializeToString())


def pairs(count: int) -> dict[str, str]:
    return {f"name{number}": BIG[:20] for number in range(count)}


def a_span(attributes: int, length: int = 8) -> span_pb2.ComplianceSpan:
    span = span_pb2.ComplianceSpan(name=BIG)
    for number in range(attributes):
        span.attributes[f"{number:x}"].string_value = "x" * length
    return span


def nested(depth: int, leaf: str = BIG) -> span_pb2.AttributeValue:
    value = span_pb2.AttributeValue(string_value=leaf)
    for _ in range(depth):
        outer = span_pb2.AttributeValue()
        outer.array_value.values.append(value)
        value = outer
    return value


def listed(count: int) -> span_pb2.ComplianceSpan:
    span = a_span(0)
    for number in range(count):
        span.attributes["list"].array_value.values.add().double_value = number
    return span


def mapped(count: int) -> span_pb2.ComplianceSpan:
    span = a_span(0)
    for number in range(count):
        span.attributes["map"].kvlist_value.values.add(key=f"{number:x}").value.int_value = number
    return span


WITHIN: dict[str, tuple[str, Message]] = {
    "pairs": ("Encrypt", pb.EncryptRequest(encryption_context=pairs(256))),
    "a payload of 4 MiB": ("Encrypt", pb.EncryptRequest(plaintext=os.urandom(4 * 1024 * 1024))),
    "pairs of both contexts": (
        "ReEncrypt",
        pb.ReEncryptRequest(encryption_context=pairs(256), destination_encryption_context=pairs(256)),
    ),
    "items": (
        "EncryptBatch",
        pb.EncryptBatchRequest(items=[pb.EncryptBatchItem(plaintext=b"1234", encryption_context=pairs(40))] * 1_000),
    ),
    "data keys": (
        "GenerateDataKeys",
        pb.GenerateDataKeysRequest(
            items=[pb.GenerateDataKeysItem(number_of_bytes=32, encryption_context=pairs(40))] * 1_000
        ),
    ),
    "attributes of a span": ("SignSpan", pb.SignSpanRequest(span=a_span(1_024))),
    "a list": ("SignSpan", pb.SignSpanRequest(span=listed(16_000))),
    "a map": ("SignSpan", pb.SignSpanRequest(span=mapped(16_000))),
    "spans": ("SignSpans", pb.SignSpansRequest(spans=[a_span(10)] * 1_000)),
    "signed spans": ("VerifySpans", pb.VerifySpansRequest(spans=[pb.SignedSpan(span=a_span(10))] * 1_000)),
    "attributes of all spans": ("SignSpans", pb.SignSpansRequest(spans=[a_span(1_024)] * 16)),
}


@pytest.mark.parametrize("kind", WITHIN)
def test_within_the_bounds(kind: str) -> None:
    """The largest that is allowed passes."""
    method, request = WITHIN[kind]
    checked(request, method)


BEYOND: dict[str, tuple[str, Message, str]] = {
    "pairs": ("Encrypt", pb.EncryptRequest(encryption_context=pairs(257)), "256 pairs in encryption_context"),
    "pairs of Decrypt": ("Decrypt", pb.DecryptRequest(encryption_context=pairs(300_000)), "256 pairs"),
    "pairs of a data key": ("GenerateDataKey", pb.GenerateDataKeyRequest(encryption_context=pairs(257)), "256 pairs"),
    "pairs of the destination": (
        "ReEncrypt",
        pb.ReEncryptRequest(destination_encryption_context=pairs(257)),
        "256 pairs in destination_encryption_context",
    ),
    "attributes of a span": ("SignSpan", pb.SignSpanRequest(span=a_span(1_025)), "1,024 attributes in one span"),
    "attributes of a signed span": (
        "VerifySpan",
        pb.VerifySpanRequest(span=a_span(250_000, 1)),
        "1,024 attributes in one span",
    ),
    "a list": ("SignSpan", pb.SignSpanRequest(span=listed(180_000)), "16,384 attributes"),
    "a map": ("SignSpan", pb.SignSpanRequest(span=mapped(17_000)), "16,384 attributes"),
    "spans": ("SignSpans", pb.SignSpansRequest(spans=[a_span(0)] * 1_001), "1,000 spans"),
    "items": (
        "EncryptBatch",
        pb.EncryptBatchRequest(items=[pb.EncryptBatchItem(plaintext=b"1234")] * 1_001),
        "1,000 items",
    ),
    "data keys": (
        "GenerateDataKeys",
        pb.GenerateDataKeysRequest(items=[pb.GenerateDataKeysItem(number_of_bytes=1024, fresh=True)] * 1_001),
        "1,000 items",
    ),
    "pairs of a data key of many": (
        "GenerateDataKeys",
        pb.GenerateDataKeysRequest(items=[pb.GenerateDataKeysItem(encryption_context=pairs(257))]),
        "256 pairs in encryption_context",
    ),
    "pairs of an item": (
        "DecryptBatch",
        pb.DecryptBatchRequest(items=[pb.DecryptBatchItem(encryption_context=pairs(300_000))]),
        "256 pairs",
    ),
    "attributes of all spans": ("SignSpans", pb.SignSpansRequest(spans=[a_span(1_024)] * 17), "16,384 attributes"),
    "one span of a batch": ("SignSpans", pb.SignSpansRequest(spans=[a_span(1), a_span(8_000)]), "1,024 attributes"),
    "depth": ("SignSpan", pb.SignSpanRequest(span=span_pb2.ComplianceSpan(attributes={"a": nested(20)})), "32 deep"),
}


@pytest.mark.parametrize("kind", BEYOND)
def test_beyond_the_bounds(kind: str) -> None:
    """One more than allowed is refused, with the bound and what to do."""
    method, request, text = BEYOND[kind]
    with pytest.raises(InvalidRequest, match=text):
        checked(request, method)


@pytest.mark.parametrize("count", [2, 1_000])
def test_field_that_is_given_in_parts_is_refused(count: int) -> None:
    """protobuf merges parts of a span, each of which is too small to be walked, to one that is beyond the bounds."""
    parts = b""
    for part in range(count):
        span = span_pb2.ComplianceSpan()
        for number in range(300):
            span.attributes[f"{part:x}-{number:x}"].SetInParent()
        parts += pb.SignSpanRequest(span=span).SerializeToString()
    assert len(parts) < wire.SMALL_BYTES * count
    assert 300 * count == len(pb.SignSpanRequest.FromString(parts).span.attributes)
    with pytest.raises(InvalidRequest, match="the request gives span more than once"):
        checked(parts, "SignSpan")


@pytest.mark.parametrize("field", [b"\x7a\x00", b"\x78\x01", b"\x7d0000", b"\x7900000000"])
def test_unknown_fields_are_bounded(field: bytes) -> None:
    """Millions of fields of no meaning are not walked to their end."""
    checked(field * 60_000, "Encrypt")
    with pytest.raises(InvalidRequest, match="65,536 fields"):
        checked(field * 70_000, "Encrypt")


@pytest.mark.parametrize("hidden_behind", [b"\x7b\x7c", b"\x7e", b"\x7f", b"\xff" * 11], ids=repr)
def test_what_cannot_be_walked_is_not_parsed(hidden_behind: bytes) -> None:
    """A group, which protobuf passes over, would hide what comes behind it."""
    request = pb.EncryptRequest(encryption_context=pairs(1_000)).SerializeToString()
    with pytest.raises(Unreadable):
        checked(hidden_behind + request, "Encrypt")


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_request_that_ends_within_a_field_is_not_parsed(cut: int) -> None:
    """It is refused here as protobuf would refuse it."""
    with pytest.raises(Unreadable):
        checked(pb.EncryptRequest(plaintext=bytes(10_000)).SerializeToString()[:-cut], "Encrypt")


def test_damaged_requests_are_refused_or_within_the_bounds() -> None:
    """Random and damaged bytes raise nothing else than a refusal, and what passes and parses is small."""
    chance = random.Random(11)  # noqa: S311  # so that a failure can be seen again
    whole = pb.SignSpansRequest(spans=[a_span(50)] * 3).SerializeToString()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 20)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        for data in (bytes(damaged), whole[: chance.randrange(len(whole))], os.urandom(6_000), b"\xff" * 6_000):
            try:
                checked(data, "SignSpans")
                request = pb.SignSpansRequest.FromString(data)
            except (InvalidRequest, Unreadable, DecodeError):
                continue
            assert len(request.spans) <= 1_000
            assert all(len(span.attributes) <= 1_024 for span in request.spans)


def test_other_services_are_not_checked() -> None:
    """The operator's requests are small, and what health and reflection take has bounds of its own."""
    assert check_of("/betrace.kms.v1.KmsAdminService/RotateKeys") is None
    assert check_of("/grpc.health.v1.Health/Check") is None
    assert all(check_of(f"/{_SERVICE.full_name}/{method.name}") for method in _SERVICE.methods)
