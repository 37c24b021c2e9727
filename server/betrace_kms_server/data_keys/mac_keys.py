"""MACs under a tenant's beacon key: blind indexes. Pure; KMS and stores are not known here.

Each purpose has a key of its own: HKDF-SHA-256 (RFC 5869) without salt, 32 bytes, of the beacon key, with the info
"betrace-kms/mac/v1" 00 purpose. A MAC is HMAC-SHA-256 (RFC 2104) of the message, cut to its leftmost bits. The official
SDKs derive keys of other infos from the same beacon key.
"""

import re
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from betrace_kms_server.core.errors import InvalidRequest
from betrace_kms_server.core.keys import KeyMaterial

MAC_BITS = 256
LEAST_BITS = 8
LEAST_VERIFIED_BITS = 128
"""A shorter MAC can be found by trying."""
_INFO = b"betrace-kms/mac/v1\x00"
_KEY_BYTES = 32
_PURPOSE = re.compile(r"[a-z0-9._-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Purpose:
    """What MACs are for, and how long they are in bits. Checked by `purpose_of`."""

    name: str
    bits: int


@dataclass(frozen=True, slots=True)
class MacKey:
    """The key of one purpose."""

    material: KeyMaterial

    def mac(self, message: bytes, bits: int) -> bytes:
        """Return the leftmost bits of a message's MAC; those of the last byte that are not used are 0."""
        hmac = HMAC(self.material.raw, hashes.SHA256())
        hmac.update(message)
        whole = hmac.finalize()[: (bits + 7) // 8]
        unused = -bits % 8
        return whole[:-1] + bytes([whole[-1] >> unused << unused])

    def matches(self, message: bytes, bits: int, mac: bytes) -> bool:
        """Compare a MAC with a message's, in constant time."""
        return bytes_eq(self.mac(message, bits), mac)


@dataclass(frozen=True, slots=True)
class BeaconKey:
    """A tenant's beacon key (32 bytes), which never rotates, and the master key behind it."""

    material: KeyMaterial
    master_key_arn: str

    def key_for(self, purpose: Purpose) -> MacKey:
        """Derive the key of a purpose."""
        derivation = HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=_INFO + purpose.name.encode())
        return MacKey(KeyMaterial(derivation.derive(self.material.raw)))


def purpose_of(name: str, bits: int, *, least: int = LEAST_BITS) -> Purpose:
    """Return a purpose, or raise InvalidRequest for one that is malformed or whose MACs have no such length."""
    if not _PURPOSE.fullmatch(name):
        raise InvalidRequest("purpose must be 1 to 64 characters of [a-z0-9._-]: name what the MAC is for")
    if bits and not least <= bits <= MAC_BITS:
        raise InvalidRequest(f"bits must be {least} to {MAC_BITS}, or 0 for {MAC_BITS}, not {bits}")
    return Purpose(name, bits or MAC_BITS)


def purpose_of_mac(name: str, bits: int, mac: bytes) -> Purpose:
    """Return the purpose of a MAC that is to be verified. Without `bits` all of its bits count."""
    bits = bits or 8 * len(mac)
    purpose = purpose_of(name, bits, least=LEAST_VERIFIED_BITS) if bits else None
    if purpose is None or len(mac) != (purpose.bits + 7) // 8:
        raise InvalidRequest(
            f"mac must have as many bytes as its bits need, {LEAST_VERIFIED_BITS // 8} to {MAC_BITS // 8}: a shorter"
            " MAC proves nothing, compute it again and compare"
        )
    return purpose
