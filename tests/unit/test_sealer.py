"""The keys that a sealer holds: for how long, for how many messages, and how many."""

import pytest
from betrace_kms_client.results import MessageKey
from betrace_kms_client.sealer import MAX_OPENING_KEYS, HeldKeys
from betrace_kms_envelope import EncryptedDataKey, KeyMaterial, Message


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def message_key(number: int = 0) -> MessageKey:
    encrypted = EncryptedDataKey("aws-kms", "arn", b"wrapped %d" % number)
    return MessageKey(KeyMaterial(bytes([1]) * 32), encrypted, {"tenantId": "acme"}, "arn")


def message(number: int = 0) -> Message:
    key = message_key(number)
    return Message.parse(key.sealer().seal(b"", key.material.raw))


def test_keys_are_wiped_when_their_time_is_over() -> None:
    """Both kinds, and not before; what still seals holds its key."""
    clock = Clock()
    keys = HeldKeys(10.0, 100, clock)
    sealing, opening = keys.renew(message_key())[1].raw, KeyMaterial(bytes([2]) * 32)
    buffer = opening.raw
    keys.keep_opening_key(message(), opening)
    del opening
    clock.now += 9.99
    taken = keys.take_sealing_key()
    assert (taken is not None, keys.opening_key(message()) is not None) == (True, True)
    clock.now += 0.01
    assert keys.expire() is None
    assert keys.take_sealing_key() is None
    assert keys.opening_key(message()) is None
    assert buffer == bytes(32)
    assert sealing == bytes([1]) * 32
    taken = None
    assert sealing == bytes(32)


def test_expire_says_when_the_next_key_is_due() -> None:
    """The older of both kinds."""
    clock = Clock()
    keys = HeldKeys(10.0, 100, clock)
    assert keys.expire() is None
    keys.keep_opening_key(message(), KeyMaterial(bytes(32)))
    clock.now += 4
    keys.renew(message_key())
    assert keys.expire() == 6
    clock.now += 7
    assert keys.expire() == 3


def test_a_key_seals_so_many_messages() -> None:
    """The first one included, and then it is gone."""
    keys = HeldKeys(10.0, 3, Clock())
    _, material = keys.renew(message_key())
    assert (keys.take_sealing_key() is not None, keys.take_sealing_key() is not None) == (True, True)
    assert keys.take_sealing_key() is None
    buffer = material.raw
    del material
    assert buffer == bytes(32)


def test_opening_keys_are_bounded() -> None:
    """The oldest one goes."""
    keys = HeldKeys(10.0, 1, Clock())
    for number in range(MAX_OPENING_KEYS + 1):
        keys.keep_opening_key(message(number), KeyMaterial(bytes(32)))
    assert keys.opening_key(message(0)) is None
    assert keys.opening_key(message(1)) is not None


def test_clear_lets_go_of_all_keys() -> None:
    """At once."""
    keys = HeldKeys(10.0, 100, Clock())
    buffer = keys.renew(message_key())[1].raw
    keys.keep_opening_key(message(), KeyMaterial(bytes(32)))
    keys.clear()
    assert keys.take_sealing_key() is None
    assert keys.opening_key(message()) is None
    assert buffer == bytes(32)


@pytest.mark.parametrize(("ttl", "max_messages"), [(0, 1), (-1, 1), (1, 0), (1, 2**32 + 1)])
def test_bounds_that_make_no_sense_are_refused(ttl: float, max_messages: int) -> None:
    """A key is held for some time, and seals at least one message and no more than its nonces last."""
    with pytest.raises(ValueError, match="must be"):
        HeldKeys(ttl, max_messages)
