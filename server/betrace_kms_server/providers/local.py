"""A provider without a cloud: a master key in a file. NOT FOR PRODUCTION USE.

It keeps the contract of the real ones with AES-256-GCM (NIST SP 800-38D) under a random 96-bit nonce, with the
encryption context as AAD. Who can read the file can read everything, and who loses it has lost everything.

Master key file, one line of ASCII: ``betrace-kms-local-v1``, the key (64 hexadecimal digits), and the first 8 bytes of
SHA-256 of all before it (16 digits), so that a file that was cut short or edited is distinguished from a good one.

Wrapped key: ``btl1``, 12 bytes nonce, AES-GCM ciphertext with its tag of 16 bytes.
"""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from betrace_kms_server.core.associated_data import associated_data
from betrace_kms_server.core.errors import DoesNotOpen, KmsError, StartRefused
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.core.key_event import KmsObserver, unobserved
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey
from betrace_kms_server.core.master_keys import LOCAL_PREFIX
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.host.atomic_file import atomic_create
from betrace_kms_server.providers.breaker import State

MASTER_KEY_FILE = "local-master.key"
_HEADING = b"betrace-kms-local-v1"
_MAGIC = b"btl1"
_NONCE_BYTES = 12
_REGION = "local"


class LocalProvider:
    """Wraps keys under a 32-byte master key that the caller read from its file."""

    name = "local"
    serving_region = _REGION
    clock_skew_seconds = None

    def __init__(self, master_key: bytes, *, observe: KmsObserver = unobserved) -> None:
        self._observe = observe
        self._cipher = AESGCM(master_key)
        fingerprint = HKDFExpand(hashes.SHA256(), 16, b"betrace-kms-local fingerprint").derive(master_key)
        self.master_key_arn = f"{LOCAL_PREFIX}{fingerprint.hex()}"

    @property
    def decrypt_key_arns(self) -> Sequence[str]:
        """The one master key there is."""
        return (self.master_key_arn,)

    @property
    def credential_attempts(self) -> Mapping[str, int]:
        """See KeyProvider. A local key needs none."""
        return {}

    @property
    def breakers(self) -> Mapping[str, State]:
        """None: there is no region that could fail."""
        return {}

    def is_current(self, arn: str) -> bool:
        """See KeyProvider."""
        return arn == self.master_key_arn

    def unwrapping_key_for(self, arn: str) -> str | None:
        """See KeyProvider."""
        return arn if self.is_current(arn) else None

    async def generate_data_key(self, number_of_bytes: int, context: Context) -> DataKey:
        """See KeyProvider."""
        with self._observe("GenerateDataKey", _REGION):
            material = KeyMaterial(os.urandom(number_of_bytes))
            return DataKey(material, self._wrapped(material, context))

    async def wrap(self, key: KeyMaterial, context: Context) -> WrappedKey:
        """See KeyProvider."""
        with self._observe("Encrypt", _REGION):
            return self._wrapped(key, context)

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> KeyMaterial:
        """See KeyProvider."""
        sealed = wrapped.blob.removeprefix(_MAGIC)
        if wrapped.master_key_arn != self.master_key_arn or len(sealed) == len(wrapped.blob):
            raise DoesNotOpen
        with self._observe("Decrypt", _REGION):
            try:
                nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
                return KeyMaterial(self._cipher.decrypt(nonce, ciphertext, associated_data(context)))
            except (InvalidTag, ValueError):  # ValueError: shorter than a nonce
                raise DoesNotOpen from None

    async def check(self, arn: str | None = None) -> None:
        """A master key in memory is always usable."""
        with self._observe("DescribeKey", _REGION):
            pass

    def remedy(self, error: KmsError) -> str | None:
        """See KeyProvider. What can be wrong with the file is found at start."""
        return None

    @property
    def latency_advice(self) -> str:
        """See KeyProvider."""
        return "give the daemon more CPU: the local provider asks nobody and took too long"

    async def inspect(self) -> Sequence[Finding]:
        """See KeyProvider. That a deployment has this provider is found in its settings."""
        return []

    def _wrapped(self, key: KeyMaterial, context: Context) -> WrappedKey:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, key.raw, associated_data(context))
        return WrappedKey(_MAGIC + nonce + sealed, self.master_key_arn)


def load_master_key(path: Path, *, create: bool) -> bytes:
    """Return the 32-byte master key of a file; make the file first if it is missing and `create` allows it.

    Raises StartRefused for a file that is missing, damaged, or readable for others than its owner.
    """
    try:
        if create and not path.exists():
            _create(path)
        mode, content = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except FileNotFoundError:
        raise StartRefused(
            f"{path} is missing, and the key store holds keys that it wrapped: restore it from a backup; without it"
            " they are lost"
        ) from None
    except OSError as cause:
        raise StartRefused(f"{path} cannot be read or made: {cause.strerror}") from cause
    if mode & 0o077:
        raise StartRefused(f"{path} is open to others (mode {mode:04o}): run chmod 600 on it")
    parts = content.split()
    if len(parts) != 3 or parts[0] != _HEADING or parts[2] != _checksum(parts[1]):
        raise StartRefused(f"{path} is damaged or cut short: restore it from a backup; nothing was changed")
    return bytes.fromhex(parts[1].decode("ascii"))


def _create(path: Path) -> None:
    """Write a new master key durably, and never over a file that is there."""
    key = os.urandom(32).hex().encode()
    with atomic_create(path) as new:
        new.write_bytes(b" ".join((_HEADING, key, _checksum(key))) + b"\n")


def _checksum(key: bytes) -> bytes:
    return hashlib.sha256(_HEADING + b" " + key).hexdigest()[:16].encode()
