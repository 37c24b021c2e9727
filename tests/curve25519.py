"""edwards25519 from its equation (RFC 8032, section 5.1): its points of small order, and a verifier to compare with."""

from hashlib import sha512

PRIME = 2**255 - 19
_D = -121665 * pow(121666, -1, PRIME) % PRIME
_ROOT_OF_MINUS_ONE = pow(2, (PRIME - 1) // 4, PRIME)


def small_order_ys() -> set[int]:
    """Return the y-coordinates of the points of order 1, 2, 4 and 8.

    Order 1, 2 and 4 have y = 1, -1 and 0. A point of order 8 doubles to one with y = 0, so x^2 = -y^2, which makes the
    equation of the curve d*y^4 + 2*y^2 - 1 = 0.
    """
    root = _square_root(1 + _D)
    assert root is not None
    squares = ((sign * root - 1) * pow(_D, -1, PRIME) % PRIME for sign in (1, -1))
    (y,) = (y for y in map(_square_root, squares) if y is not None)
    x = y * _ROOT_OF_MINUS_ONE % PRIME
    assert (y * y - x * x - 1 - _D * x * x * y * y) % PRIME == 0
    return {0, 1, PRIME - 1, y, PRIME - y}


def _square_root(square: int) -> int | None:
    root = pow(square, (PRIME + 3) // 8, PRIME)
    return next((r for r in (root, root * _ROOT_OF_MINUS_ONE % PRIME) if (r * r - square) % PRIME == 0), None)


_ORDER = 2**252 + 27742317777372353535851937790883648493
_Point = tuple[int, int, int, int]
"""X, Y, Z and T of the extended coordinates of RFC 8032, section 5.1.4."""


def verifies(public_key: bytes, signature: bytes, message: bytes, cofactor: int = 1) -> bool:
    """Verify as RFC 8032, section 5.1.7, has it, with the cofactor of 1 or 8, and R compared byte for byte."""
    key = _decoded(public_key)
    s = int.from_bytes(signature[32:], "little")
    if key is None or len(signature) != 64 or s >= _ORDER:
        return False
    k = int.from_bytes(sha512(signature[:32] + public_key + message).digest(), "little") % _ORDER
    x, y, z, t = key
    expected = _sum(_multiple(s, _BASE), _multiple(k, (-x, y, z, -t)))
    if cofactor == 1:
        return signature[:32] == _encoded(expected)
    r = _decoded(signature[:32])
    return r is not None and _encoded(_multiple(cofactor, r)) == _encoded(_multiple(cofactor, expected))


def signed_with_torsion(seed: bytes, message: bytes) -> bytes:
    """Return a signature whose R has a part of order 2: good with the cofactor, and not without."""
    a = int.from_bytes(sha512(seed).digest()[:32], "little") & (2**254 - 8) | 2**254
    r = 7
    big_r = _encoded(_sum(_multiple(r, _BASE), (0, PRIME - 1, 1, 0)))
    k = int.from_bytes(sha512(big_r + _encoded(_multiple(a, _BASE)) + message).digest(), "little")
    return big_r + ((r + k * a) % _ORDER).to_bytes(32, "little")


def _decoded(raw: bytes) -> _Point | None:
    number = int.from_bytes(raw, "little")
    y, sign = number % 2**255, number >> 255
    x = _square_root((y * y - 1) * pow(_D * y * y + 1, -1, PRIME))
    if x is None or y >= PRIME or (x == 0 and sign):
        return None
    x = x if x % 2 == sign else PRIME - x
    return x, y, 1, x * y % PRIME


def _encoded(point: _Point) -> bytes:
    x, y, z, _ = point
    inverse = pow(z, -1, PRIME)
    return (y * inverse % PRIME | (x * inverse % PRIME & 1) << 255).to_bytes(32, "little")


def _sum(one: _Point, other: _Point) -> _Point:
    (x, y, z, t), (u, v, w, s) = one, other
    a, b, c, d = (y - x) * (v - u), (y + x) * (v + u), 2 * t * s * _D, 2 * z * w
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % PRIME, g * h % PRIME, f * g % PRIME, e * h % PRIME


def _multiple(number: int, point: _Point) -> _Point:
    result: _Point = (0, 1, 1, 0)
    while number:
        if number & 1:
            result = _sum(result, point)
        point, number = _sum(point, point), number >> 1
    return result


_BASE = _decoded((4 * pow(5, -1, PRIME) % PRIME).to_bytes(32, "little")) or (0, 1, 1, 0)
