"""Messages sealed and opened piece by piece: the same messages as in one go, in constant memory.

That `Opening` agrees with `Message.open` about every message, good or bad, is checked in test_envelope.py.
"""

import random
import tracemalloc

import pytest
from betrace_kms_envelope import (
    FRAME_BYTES,
    MAX_FRAME_BYTES,
    DoesNotOpen,
    EncryptedDataKey,
    Message,
    Opening,
    Sealer,
    Sealing,
    TooLarge,
    header_length,
)
from betrace_kms_envelope import stream as implementation
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_envelope import header

KEY = bytes(range(32))
CONTEXT = {"tenantId": "acme", "keyType": "encryption", "file": "Ωmega"}
SEALER = Sealer(EncryptedDataKey("aws-kms", "arn:aws:kms:us-east-1:123456789012:key/1", b"wrapped"), CONTEXT)
SIZES = [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES, 3 * FRAME_BYTES + 17]


def sealed(content: bytes, pieces: list[int]) -> bytes:
    """Seal content of which `pieces` bytes come at a time, and the rest at the end."""
    sealing = Sealing(SEALER, KEY)
    message = bytearray(sealing.header)
    at = 0
    for size in pieces:
        message += sealing.update(content[at : at + size])
        at += size
    message += sealing.update(content[at:])
    return bytes(message + sealing.finalize())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pieces", [[], [1], [FRAME_BYTES], [FRAME_BYTES, FRAME_BYTES], [100_000], [0, 5, 0]])
def test_what_was_sealed_in_pieces_opens_in_one_go(size: int, pieces: list[int]) -> None:
    """Whatever pieces the content came in, and with frames that are the writer's own, of the same length."""
    content = random.Random(size).randbytes(size)  # noqa: S311  # test data
    message = sealed(content, pieces)
    assert Message.parse(message).open(KEY) == content
    assert len(message) == len(SEALER.seal(content, KEY))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300_000), st.lists(st.integers(0, 150_000), max_size=5))
def test_any_pieces(size: int, pieces: list[int]) -> None:
    """Sealed and opened in pieces, the content comes back."""
    content = random.Random(size).randbytes(size)  # noqa: S311  # test data
    message = sealed(content, pieces)
    length = header_length(message)
    assert length is not None
    opening = Opening(message[:length], KEY)
    found, at = bytearray(), length
    for piece in pieces:
        found += opening.update(message[at : at + piece])
        at += piece
    found += opening.update(message[at:])
    opening.finalize()
    assert found == content


def test_memory_does_not_grow_with_the_content() -> None:
    """100 MiB pass through while 4 MiB at most are held, both ways."""
    piece = bytes(1024 * 1024)
    tracemalloc.start()
    try:
        sealing = Sealing(SEALER, KEY)
        opening = Opening(bytes(sealing.header), KEY)
        size = 0
        for _ in range(100):
            size += len(opening.update(sealing.update(piece)))
        size += len(opening.update(sealing.finalize()))
        opening.finalize()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 100 * len(piece)
    assert peak < 6 * 1024 * 1024


def test_a_message_that_was_cut_between_frames_is_noticed_at_its_end() -> None:
    """Every frame of it verified, so it takes finalize to know."""
    message = sealed(bytes(3 * FRAME_BYTES), [])
    length = header_length(message)
    assert length is not None
    opening = Opening(message[:length], KEY)
    cut = length + 2 * (4 + 12 + FRAME_BYTES + 16)
    assert opening.update(message[length:cut]) == bytes(2 * FRAME_BYTES)
    with pytest.raises(DoesNotOpen):
        opening.finalize()


def test_a_header_is_asked_for_byte_by_byte() -> None:
    """`header_length` knows the length as soon as the header is there, and not before."""
    message = SEALER.seal(b"text", KEY)
    lengths = [header_length(message[:size]) for size in range(len(message) + 1)]
    length = lengths[-1]
    assert length is not None
    assert lengths == [None if size < length else length for size in range(len(message) + 1)]


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"\x01\x80", id="version 1"),
        pytest.param(b"text", id="text"),
        pytest.param(b"\x02\x04\x79", id="suite"),
        pytest.param(b"\x02\x04\x78" + bytes(34) + b"\xff\xff" + (b"\xff\xff" + bytes(65_535)) * 3, id="endless"),
    ],
)
def test_what_is_no_message_is_refused_at_its_start(start: bytes) -> None:
    """Before more of it is waited for."""
    with pytest.raises(DoesNotOpen):
        header_length(start)


def test_plaintext_is_wiped_from_what_was_held() -> None:
    """What waited for its frame to fill is overwritten."""
    sealing = Sealing(SEALER, KEY)
    sealing.update(b"secret" * 100)
    held = sealing._held
    sealing.finalize()
    assert held == bytes(600)


def test_a_message_never_has_more_frames_than_its_format_can_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sequence number is the IV: it must not begin again."""
    monkeypatch.setattr(implementation, "_MAX_FRAMES", 3)
    sealing = Sealing(SEALER, KEY)
    sealing.update(bytes(3 * FRAME_BYTES))
    sealing.finalize()
    sealing = Sealing(SEALER, KEY)
    with pytest.raises(ValueError, match="divide it"):
        sealing.update(bytes(5 * FRAME_BYTES))


def test_frames_that_do_not_fit_in_memory_are_named() -> None:
    """A message of an SDK may have frames of up to 4 GiB; they are not waited for."""
    message = header(frame_length=MAX_FRAME_BYTES + 1)
    opening = Opening(message, KEY)
    with pytest.raises(TooLarge, match="AWS Encryption SDK"):
        opening.update((1).to_bytes(4, "big") + bytes(40))
    opening = Opening(header(content_type=1, frame_length=0), KEY)
    with pytest.raises(TooLarge, match="AWS Encryption SDK"):
        opening.update(bytes(12) + (MAX_FRAME_BYTES + 1).to_bytes(8, "big"))
