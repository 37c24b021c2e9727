"""A seeded mutator of bytes: the same seed gives the same inputs on every machine."""

import random
from collections.abc import Iterator, Sequence

_INTERESTING = (
    b"",
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\r\n",
    b'"',
    b"{",
    b"[",
    b"\\u0000",
    b"-1",
    b"\xed\xa0\x80",
)
MAX_BYTES = 65_536


def mutations(seeds: Sequence[bytes], *, seed: int) -> Iterator[bytes]:
    """Yield the seeds, then mutated ones without an end."""
    yield from seeds
    chance = random.Random(seed)  # noqa: S311  # inputs of a test, not secrets
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            _change(data, chance, seeds)
        yield bytes(data[:MAX_BYTES])


def _change(data: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> None:
    at = chance.randint(0, len(data))
    end = min(len(data), at + chance.randint(1, 16))
    match chance.randrange(6):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            data[at:end] = chance.randbytes(end - at)
        case 2:
            del data[at:end]
        case 3:
            data[at:at] = data[at:end] * chance.randint(1, 64)
        case 4:
            data[at:end] = chance.choice(_INTERESTING)
        case _:
            other = chance.choice(seeds)
            data[at:] = other[chance.randint(0, len(other)) :]
