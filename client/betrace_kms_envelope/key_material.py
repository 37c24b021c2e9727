"""Raw key bytes, which do not outlive their use.

KeyMaterial zeroes them when the last reference to it goes. CPython counts references, so that is at once, and never
under the feet of somebody who still seals with it.
"""


class KeyMaterial:
    """Raw key bytes, zeroed when the last holder lets go."""

    __slots__ = ("_buffer",)

    def __init__(self, raw: bytes | bytearray) -> None:
        self._buffer = bytearray(raw)

    def __len__(self) -> int:
        return len(self._buffer)

    def __repr__(self) -> str:
        return f"<KeyMaterial of {len(self._buffer)} bytes>"

    def __reduce__(self) -> str:
        raise TypeError("key material is not serialised")

    def __del__(self) -> None:
        self._buffer[:] = bytes(len(self._buffer))

    @property
    def raw(self) -> bytearray:
        """The bytes themselves. Hold on to the KeyMaterial for as long as you use them."""
        return self._buffer
