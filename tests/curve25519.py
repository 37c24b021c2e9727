"""The points of small order of edwards25519, derived from its equation (RFC 8032, section 5.1), not copied."""

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
