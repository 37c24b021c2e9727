"""AWS Encryption SDK messages: held against an independent writer, and against every single flipped bit."""

import hashlib
import random
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import cycle

import pytest
from betrace_kms_envelope import (
    DATA_KEY_BYTES,
    FRAME_BYTES,
    MAX_FRAMES,
    DoesNotOpen,
    EncryptedDataKey,
    Message,
    Opening,
    Sealer,
    TooLarge,
    header_length,
)
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = bytes(range(32))
MESSAGE_ID = bytes(range(100, 132))
ARN = "arn:aws:kms:us-east-1:123456789012:key/abcd1234-5678-90ab-cdef-1234567890ab"
WRAPPED = EncryptedDataKey("aws-kms", ARN, b"wrapped key")
CONTEXT = {"tenantId": "acme", "keyType": "encryption"}
PAIRS = [("keyType", "encryption"), ("tenantId", "acme")]
PLAIN, SIGNED = 0x0478, 0x0578
PUBLIC_KEY = "aws-crypto-public-key"
EC_KEY = ec.derive_private_key(0xB37ACE, ec.SECP384R1())
REFUSAL = str(DoesNotOpen())

Pairs = Sequence[tuple[str, str]]
Frame = tuple[bool, int, bytes]
"""Whether it is the final frame, its sequence number, its content."""


# An independent writer, after "AWS Encryption SDK message format reference" of the developer guide.


def integer(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


def chunk(data: bytes) -> bytes:
    return integer(len(data), 2) + data


def context_field(pairs: Pairs) -> bytes:
    if not pairs:
        return b"\0\0"
    written = b"".join(chunk(name.encode()) + chunk(value.encode()) for name, value in pairs)
    return chunk(integer(len(pairs), 2) + written)


def keys_field(keys: Sequence[EncryptedDataKey]) -> bytes:
    return integer(len(keys), 2) + b"".join(
        chunk(key.provider_id.encode()) + chunk(key.provider_info.encode()) + chunk(key.ciphertext) for key in keys
    )


def derived(info: bytes, message_id: bytes, key: bytes = KEY) -> bytes:
    return HKDF(algorithm=hashes.SHA512(), length=32, salt=message_id, info=info).derive(key)


def cipher_of(suite: int, message_id: bytes, key: bytes = KEY) -> AESGCM:
    return AESGCM(derived(integer(suite, 2) + b"DERIVEKEY", message_id, key))


def header(
    *,
    version: int = 2,
    suite: int = PLAIN,
    message_id: bytes = MESSAGE_ID,
    context: bytes | None = None,
    keys: Sequence[EncryptedDataKey] | bytes = (WRAPPED,),
    content_type: int = 2,
    frame_length: int = 16,
    commitment: bytes | None = None,
    key: bytes = KEY,
) -> bytes:
    """Write a header with its tag; what is given as bytes replaces a whole field."""
    body = b"".join(
        (
            integer(version, 1),
            integer(suite, 2),
            message_id,
            context_field(PAIRS) if context is None else context,
            keys if isinstance(keys, bytes) else keys_field(keys),
            integer(content_type, 1),
            integer(frame_length, 4),
            derived(b"COMMITKEY", message_id, key) if commitment is None else commitment,
        )
    )
    return body + cipher_of(suite, message_id, key).encrypt(bytes(12), b"", body)


def framed_body(
    frames: Sequence[Frame], *, suite: int = PLAIN, message_id: bytes = MESSAGE_ID, key: bytes = KEY
) -> bytes:
    parts = []
    for final, number, content in frames:
        kind = b"AWSKMSEncryptionClient Final Frame" if final else b"AWSKMSEncryptionClient Frame"
        iv = integer(number, 12)
        aad = message_id + kind + integer(number, 4) + integer(len(content), 8)
        start = b"\xff\xff\xff\xff" if final else b""
        length = integer(len(content), 4) if final else b""
        encrypted = cipher_of(suite, message_id, key).encrypt(iv, content, aad)
        parts.append(start + integer(number, 4) + iv + length + encrypted)
    return b"".join(parts)


def frames_of(plaintext: bytes, frame_length: int) -> list[Frame]:
    cuts = range(0, max(1, len(plaintext)), frame_length)
    return [(number == len(cuts), number, plaintext[at : at + frame_length]) for number, at in enumerate(cuts, start=1)]


def single_block(plaintext: bytes, *, suite: int = PLAIN, message_id: bytes = MESSAGE_ID) -> bytes:
    iv = integer(1, 12)
    kind = b"AWSKMSEncryptionClient Single Block"
    aad = message_id + kind + integer(1, 4) + integer(len(plaintext), 8)
    return iv + integer(len(plaintext), 8) + cipher_of(suite, message_id).encrypt(iv, plaintext, aad)


def footer(message: bytes, key: ec.EllipticCurvePrivateKey = EC_KEY) -> bytes:
    return chunk(key.sign(message, ec.ECDSA(hashes.SHA384())))


def public_pair(key: ec.EllipticCurvePrivateKey = EC_KEY) -> tuple[str, str]:
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    return (PUBLIC_KEY, b64encode(point).decode())


def framed(plaintext: bytes, frame_length: int = 16, message_id: bytes = MESSAGE_ID) -> bytes:
    return header(frame_length=frame_length, message_id=message_id) + framed_body(
        frames_of(plaintext, frame_length), message_id=message_id
    )


def non_framed(plaintext: bytes) -> bytes:
    return header(content_type=1, frame_length=0) + single_block(plaintext)


def unsigned_0578(plaintext: bytes, *pairs: tuple[str, str]) -> bytes:
    """Write a message of the suite with signature, up to its footer."""
    context = context_field([*pairs, *PAIRS])
    return header(suite=SIGNED, context=context) + framed_body(frames_of(plaintext, 16), suite=SIGNED)


def signed_0578(plaintext: bytes) -> bytes:
    message = unsigned_0578(plaintext, public_pair())
    return message + footer(message)


# What the tests ask.


def opened(message: bytes, key: bytes = KEY) -> bytes:
    """Open a message in one go, and check that the reader of streams says the same, whatever pieces it gets."""
    dice = random.Random(len(message))  # noqa: S311  # test data
    pieces = dice.choice([[1], [7, 64], [100_000]])
    try:
        whole = Message.parse(message).open(key)
    except DoesNotOpen:
        with pytest.raises((DoesNotOpen, TooLarge)):
            opened_in_pieces(message, key, pieces)
        raise
    assert opened_in_pieces(message, key, pieces) == whole
    return whole


def opened_in_pieces(message: bytes, key: bytes, sizes: Sequence[int]) -> bytes:
    """Open a message of which `sizes` bytes come at a time, in turns."""
    held, opening, contents, at = b"", None, [], 0
    for size in cycle(sizes):
        held += message[at : at + size]
        at += size
        if opening is None and (length := header_length(held)) is not None:
            opening, held = Opening(held[:length], key), held[length:]
        if opening is not None:
            contents.append(opening.update(held))
            held = b""
        if at >= len(message):
            break
    if opening is None:
        raise DoesNotOpen
    opening.finalize()
    return b"".join(contents)


def refused(message: bytes, key: bytes = KEY) -> bool:
    """Tell whether a message does not open, and for no reason that is told."""
    with pytest.raises(DoesNotOpen) as error:
        opened(message, key)
    return error.value.args == (REFUSAL,)


def content(size: int) -> bytes:
    """Give bytes of which no part repeats."""
    return hashlib.shake_256(b"content").digest(size)


def bits_flipped(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


sizes = st.integers(0, 40) | st.builds(
    lambda frames, offset: max(0, frames * FRAME_BYTES + offset), st.integers(0, 3), st.integers(-2, 2)
)
contexts = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)


@settings(max_examples=60, deadline=None)
@given(sizes, contexts, st.binary(min_size=32, max_size=32))
def test_round_trip(size: int, context: dict[str, str], key: bytes) -> None:
    """What was sealed opens to the same bytes, and its header gives the context and the wrapped key back."""
    message = Message.parse(Sealer(WRAPPED, context).seal(content(size), key))
    assert (context, (WRAPPED,)) == (message.context, message.encrypted_data_keys)
    assert content(size) == message.open(key)


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES, 200_000])
def test_sealed_is_what_the_format_says(size: int) -> None:
    """A sealed message is, byte for byte, what an independent writer makes of the same message id."""
    sealed = Sealer(WRAPPED, CONTEXT).seal(content(size), KEY)
    assert framed(content(size), FRAME_BYTES, message_id=sealed[3:35]) == sealed


def test_sealed_context_is_sorted_by_utf8() -> None:
    """Pairs are written in the order of their names' UTF-8 bytes, whatever the order they came in."""
    in_order = [("", "1"), ("B", "2"), ("a", "3"), ("é", "4"), ("\ufb33", "5"), ("😀", "6")]
    sealed = Sealer(WRAPPED, dict(reversed(in_order))).seal(b"", KEY)
    assert context_field(in_order) == sealed[35 : 35 + len(context_field(in_order))]


def test_sealed_without_context() -> None:
    """No pair at all is a length of zero, with no count after it."""
    sealed = Sealer(WRAPPED, {}).seal(b"text", KEY)
    assert b"\x00\x00" + keys_field([WRAPPED]) == sealed[35 : 37 + len(keys_field([WRAPPED]))]
    assert b"text" == opened(sealed)


def test_two_messages_never_look_alike() -> None:
    """Each message has an id of its own, and by it a key of its own: one text sealed twice has another tag."""
    sealer = Sealer(WRAPPED, CONTEXT)
    first, second = sealer.seal(b"text", KEY), sealer.seal(b"text", KEY)
    assert first[3:35] != second[3:35]
    assert first[-16:] != second[-16:]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda: Sealer(WRAPPED, CONTEXT).seal(b"some text", KEY), id="sealed"),
        pytest.param(lambda: framed(content(20)), id="framed"),
        pytest.param(lambda: non_framed(b"some text"), id="non-framed"),
        pytest.param(lambda: signed_0578(b"some text"), id="signed"),
    ],
)
def test_every_flipped_bit_is_refused(write: Callable[[], bytes]) -> None:
    """No bit of a message can be changed, be it of the header, the body, a tag or the footer; the error is one."""
    message = write()
    opened(message)
    assert all(refused(changed) for changed in bits_flipped(message))


@pytest.mark.parametrize(
    "message",
    [framed(content(20)), framed(b""), non_framed(b"some text"), non_framed(b""), signed_0578(b"some text")],
    ids=["framed", "framed empty", "non-framed", "non-framed empty", "signed"],
)
def test_every_truncation_is_refused(message: bytes) -> None:
    """A message that ends early does not open, wherever it ends."""
    opened(message)
    assert all(refused(message[:size]) for size in range(len(message)))


@pytest.mark.parametrize(
    "tail", [b"\0", b"\xff" * 16, framed_body([(True, 1, b"again")])], ids=["byte", "bytes", "frame"]
)
@pytest.mark.parametrize(
    "message",
    [framed(b"text"), non_framed(b"text"), signed_0578(b"text")],
    ids=["framed", "non-framed", "signed"],
)
def test_trailing_bytes_are_refused(message: bytes, tail: bytes) -> None:
    """A message with something behind it does not open."""
    assert refused(message + tail)


@pytest.mark.parametrize(
    "key",
    [bytes(32), KEY[::-1], KEY[:16], KEY[:31], KEY + b"\0", b""],
    ids=["zeros", "reversed", "16", "31", "33", "none"],
)
def test_other_keys_are_refused(key: bytes) -> None:
    """A message opens under its own data key of 32 bytes only."""
    assert refused(framed(b"text"), key)


@pytest.mark.parametrize("size", [16, 31, 33, 64])
def test_keys_of_other_sizes_are_refused(size: int) -> None:
    """Both suites take data keys of 32 bytes: even a message that was made with another size is refused."""
    key = content(size)
    assert refused(header(key=key) + framed_body([(True, 1, b"text")], key=key), key)


def test_the_key_may_be_a_bytearray() -> None:
    """Keys come as the buffer that will be wiped, and it is left as it is."""
    key = bytearray(KEY)
    sealed = Sealer(WRAPPED, CONTEXT).seal(b"text", key)
    assert b"text" == Message.parse(sealed).open(key)
    assert KEY == key


@pytest.mark.parametrize("frame_length", [1, 2, 7, 16, 19, 20, 21, 2**32 - 1])
def test_other_frame_lengths_open(frame_length: int) -> None:
    """A message of another SDK may have frames of any length."""
    assert content(20) == opened(framed(content(20), frame_length))


def test_an_empty_final_frame_opens() -> None:
    """Some SDKs end a text that fills its frames with a final frame of nothing."""
    frames = [(False, 1, content(16)), (False, 2, content(32)[16:]), (True, 3, b"")]
    assert content(32) == opened(header() + framed_body(frames))


@pytest.mark.parametrize("size", [0, 1, 16, 100_000])
def test_non_framed_opens(size: int) -> None:
    """A body of one block opens, the empty one too."""
    assert content(size) == opened(non_framed(content(size)))


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([(False, 2, b"B" * 16), (False, 1, b"A" * 16), (True, 3, b"C")], id="swapped"),
        pytest.param([(False, 1, b"A" * 16), (False, 1, b"A" * 16), (True, 2, b"C")], id="repeated"),
        pytest.param([(False, 1, b"A" * 16), (True, 3, b"C")], id="left out"),
        pytest.param([(False, 0, b"A" * 16), (True, 1, b"C")], id="from zero"),
        pytest.param([(True, 2, b"C")], id="first left out"),
        pytest.param([(False, 1, b"A" * 16)], id="no final frame"),
        pytest.param([(True, 1, b"C"), (True, 2, b"D")], id="two final frames"),
        pytest.param([(True, 1, b"C" * 17)], id="final frame too long"),
        pytest.param([(False, 1, b"A" * 15), (True, 2, b"C")], id="frame too short"),
    ],
)
def test_frames_in_disorder_are_refused(frames: Sequence[Frame]) -> None:
    """Frames count from 1 without a gap and end with one final frame, even if the key's holder wrote them otherwise."""
    assert refused(header() + framed_body(frames))


def test_a_frame_is_bound_to_its_message() -> None:
    """A frame of one message does not open within another message under the same data key."""
    other = MESSAGE_ID[::-1]
    assert refused(header() + framed_body([(True, 1, b"text")], message_id=other))


def test_a_foreign_commitment_is_refused() -> None:
    """A message that commits to another key does not open, though every tag of it verifies."""
    assert refused(header(commitment=derived(b"COMMITKEY", MESSAGE_ID, bytes(32))) + framed_body([(True, 1, b"text")]))


def test_the_signed_suite_opens() -> None:
    """A message of suite 0x0578 opens when its footer verifies; what an SDK writes by default."""
    message = signed_0578(content(40))
    assert content(40) == opened(message)
    assert public_pair()[1] == Message.parse(message).context[PUBLIC_KEY]


def test_the_signed_suite_opens_without_frames() -> None:
    """Suite 0x0578 goes with a body of one block too."""
    context = context_field([public_pair(), *PAIRS])
    message = header(suite=SIGNED, content_type=1, frame_length=0, context=context) + single_block(
        b"text", suite=SIGNED
    )
    assert b"text" == opened(message + footer(message))


def test_bad_footers_are_refused() -> None:
    """A signature by another key, over other bytes, of a wrong form or of no bytes does not verify."""
    message = unsigned_0578(b"text", public_pair())
    opened(message + footer(message))
    other = ec.derive_private_key(0xBAD, ec.SECP384R1())
    p256 = ec.derive_private_key(0xBAD, ec.SECP256R1())
    for bad in (
        footer(message, other),
        footer(message, p256),
        footer(message[:-1]),
        footer(message + b"\0"),
        footer(message)[2:],
        chunk(b""),
        chunk(b"\x30\x00"),
        b"",
    ):
        assert refused(message + bad)


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([], id="none"),
        pytest.param([(PUBLIC_KEY, "")], id="empty"),
        pytest.param([(PUBLIC_KEY, "not base64!")], id="not base64"),
        pytest.param([(PUBLIC_KEY, public_pair()[1] + "\n")], id="line break"),
        pytest.param([(PUBLIC_KEY, "ключ")], id="not ASCII"),
        pytest.param([(PUBLIC_KEY, "AAAA")], id="no point"),
        pytest.param([(PUBLIC_KEY, b64encode(b"\x02" + b"\xff" * 48).decode())], id="not on the curve"),
        pytest.param([public_pair(ec.derive_private_key(7, ec.SECP384R1()))], id="another"),
        pytest.param([public_pair(ec.derive_private_key(7, ec.SECP256R1()))], id="of another curve"),
    ],
)
def test_a_bad_public_key_is_refused(pairs: Pairs) -> None:
    """Without the right public key in its context a signed message does not open."""
    message = unsigned_0578(b"text", *pairs)
    assert refused(message + footer(message))


def test_a_footer_has_no_place_in_the_plain_suite() -> None:
    """Suite 0x0478 has no footer: one is trailing bytes, and a public key in the context is of a footer taken away."""
    plain = header(context=context_field(PAIRS)) + framed_body([(True, 1, b"text")])
    stripped = header(context=context_field([public_pair(), *PAIRS])) + framed_body([(True, 1, b"text")])
    assert b"text" == opened(plain)
    assert refused(plain + footer(plain))
    assert refused(stripped)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_several_encrypted_data_keys(count: int) -> None:
    """Up to ten wrapped keys are read, in order; the header is authentic whichever of them is used."""
    keys = [EncryptedDataKey(f"provider-{number}", f"key ü{number}", b"x" * number) for number in range(count)]
    message = Message.parse(header(keys=keys) + framed_body([(True, 1, b"text")]))
    assert tuple(keys) == message.encrypted_data_keys
    assert b"text" == message.open(KEY)


@pytest.mark.parametrize("count", [0, 11, 65_535])
def test_too_few_or_too_many_encrypted_data_keys(count: int) -> None:
    """No wrapped key, or more than ten, are refused: each might cost a call of KMS."""
    assert refused(header(keys=[WRAPPED] * count) + framed_body([(True, 1, b"text")]))


def test_the_limit_of_encrypted_data_keys_can_be_lowered() -> None:
    """A caller of `parse` may set a lower limit."""
    message = header(keys=[WRAPPED] * 2) + framed_body([(True, 1, b"text")])
    assert 2 == len(Message.parse(message, max_encrypted_data_keys=2).encrypted_data_keys)
    with pytest.raises(DoesNotOpen):
        Message.parse(message, max_encrypted_data_keys=1)


def test_unsorted_pairs_open() -> None:
    """Order of the pairs is the writer's duty; a reader takes them as they are authenticated."""
    message = Message.parse(header(context=context_field(PAIRS[::-1])) + framed_body([(True, 1, b"text")]))
    assert CONTEXT == message.context
    assert b"text" == message.open(KEY)


@pytest.mark.parametrize(
    "context",
    [
        pytest.param(context_field([("a", "1"), ("a", "2")]), id="duplicate"),
        pytest.param(context_field([("a", "1"), ("b", "2"), ("a", "1")]), id="duplicate, equal"),
        pytest.param(chunk(integer(0, 2)), id="count of zero"),
        pytest.param(chunk(integer(0, 2) + chunk(b"a") + chunk(b"1")), id="count too small"),
        pytest.param(chunk(integer(2, 2) + chunk(b"a") + chunk(b"1")), id="count too large"),
        pytest.param(chunk(integer(1, 2) + chunk(b"a") + chunk(b"1") + b"\0"), id="byte left over"),
        pytest.param(integer(7, 2) + integer(1, 2) + chunk(b"a") + chunk(b"1"), id="length too small"),
        pytest.param(chunk(integer(1, 2) + chunk(b"\xff") + chunk(b"1")), id="name not UTF-8"),
        pytest.param(chunk(integer(1, 2) + chunk(b"a") + chunk(b"\xed\xa0\x80")), id="value not UTF-8"),
        pytest.param(chunk(b"\0"), id="half a count"),
    ],
)
def test_malformed_contexts_are_refused(context: bytes) -> None:
    """A context that could be read in two ways does not open, though its writer held the key."""
    assert refused(header(context=context) + framed_body([(True, 1, b"text")]))


def test_a_provider_id_must_be_utf8() -> None:
    """A provider id is text."""
    keys = integer(1, 2) + chunk(b"\xff") + chunk(ARN.encode()) + chunk(b"wrapped key")
    assert refused(header(keys=keys) + framed_body([(True, 1, b"text")]))


def test_provider_info_may_be_any_bytes() -> None:
    """A raw AES key has a nonce in its provider info: next to ours it does not keep a message from opening."""
    raw = chunk(b"raw") + chunk(b"name\0\0\0\x80\0\0\0\x0c\xff\xfe") + chunk(b"key")
    message = Message.parse(
        header(keys=integer(2, 2) + raw + keys_field([WRAPPED])[2:]) + framed_body([(True, 1, b"text")])
    )
    assert WRAPPED == message.encrypted_data_keys[1]
    assert ARN != message.encrypted_data_keys[0].provider_info
    assert b"text" == message.open(KEY)


def test_a_large_header_opens() -> None:
    """A context of the size that KMS takes, and wrapped keys of it, are read like small ones."""
    pairs = [(f"{number:03}", "x" * 50) for number in range(150)]
    keys = [EncryptedDataKey("aws-kms", ARN, bytes(6144))] * 10
    message = Message.parse(header(context=context_field(pairs), keys=keys) + framed_body([(True, 1, b"text")]))
    assert (dict(pairs), tuple(keys)) == (message.context, message.encrypted_data_keys)
    assert b"text" == message.open(KEY)


def test_messages_share_nothing_that_can_be_changed() -> None:
    """What one reader does to a context is not seen by the next reader of the same header."""
    message = framed(b"text")
    with suppress(TypeError):
        Message.parse(message).context["tenantId"] = "globex"  # type: ignore[index]
    assert CONTEXT == Message.parse(message).context


@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_other_versions_are_refused(version: int) -> None:
    """Only version 2 is read: version 1 commits to no key."""
    assert refused(header(version=version) + framed_body([(True, 1, b"text")]))


@pytest.mark.parametrize("suite", [0x0000, 0x0014, 0x0046, 0x0078, 0x0114, 0x0178, 0x0378, 0x0479, 0x0678, 0x7804])
def test_other_suites_are_refused(suite: int) -> None:
    """Only the two suites with key commitment are read, whatever else the message says."""
    assert refused(header(suite=suite) + framed_body([(True, 1, b"text")], suite=suite))


@pytest.mark.parametrize(("content_type", "frame_length"), [(0, 0), (0, 16), (1, 16), (2, 0), (3, 16), (255, 0)])
def test_other_content_types_are_refused(content_type: int, frame_length: int) -> None:
    """Content is framed with a frame length, or neither."""
    start = header(content_type=content_type, frame_length=frame_length)
    assert refused(start + framed_body([(True, 1, b"text")]))
    assert refused(start + single_block(b"text"))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(
            header(content_type=1, frame_length=0) + bytes(12) + integer(length, 8) + bytes(40), id=hex(length)
        )
        for length in (25, 2**31, 2**40, 2**63, 2**64 - 1)
    ]
    + [
        pytest.param(header(frame_length=2**32 - 1) + integer(1, 4) + bytes(100), id="frame"),
        pytest.param(
            header(frame_length=2**32 - 1) + b"\xff" * 4 + integer(1, 4) + bytes(12) + b"\xff" * 4 + bytes(99),
            id="final frame",
        ),
        pytest.param(b"\x02\x04\x78" + bytes(32) + b"\xff" * 60, id="context"),
        pytest.param(b"\x02\x04\x78" + bytes(32) + bytes(2) + integer(1, 2) + b"\xff" * 60, id="provider id"),
    ],
)
def test_lengths_that_lie_cost_nothing(message: bytes) -> None:
    """A length beyond the end of the message is refused before memory is taken for it."""
    assert refused(message)
    tracemalloc.start()
    try:
        assert refused(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"", b"\x02\x04\x78", b"\x02\x05\x78", b"\x01\x80"]), st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(start: bytes, rest: bytes) -> None:
    """Whatever it is given, a reader answers DoesNotOpen and nothing else."""
    assert refused(start + rest)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_mangled_messages_are_refused(seed: int, changes: int) -> None:
    """A message with parts overwritten, doubled or cut out answers DoesNotOpen and nothing else."""
    dice = random.Random(seed)  # noqa: S311  # test data
    original = dice.choice([framed(content(40)), non_framed(content(40)), signed_0578(content(40))])
    mangled = original
    for _ in range(changes):
        at, size = dice.randrange(len(mangled) + 1), dice.randrange(5)
        mangled = dice.choice(
            [
                mangled[:at] + dice.randbytes(size) + mangled[at + size :],
                mangled[:at] + mangled[at + size :],
                mangled[: at + size] + mangled[at:],
            ]
        )
    assert mangled == original or refused(mangled)


def test_reprs_show_no_message() -> None:
    """A message in a log shows neither ciphertext nor wrapped key."""
    message = Message.parse(framed(b"text"))
    assert "wrapped key" not in repr(message)
    assert "memory" not in repr(message)
    assert 32 == DATA_KEY_BYTES


def test_frames_are_bounded() -> None:
    """65,536 frames open in one go; a message with one more opens in pieces only."""
    assert content(MAX_FRAMES) == opened(framed(content(MAX_FRAMES), 1))
    larger = framed(content(MAX_FRAMES + 1), 1)
    with pytest.raises(DoesNotOpen):
        Message.parse(larger).open(KEY)
    assert content(MAX_FRAMES + 1) == opened_in_pieces(larger, KEY, [100_000])
