"""Requests to Cloud KMS, with their checksums (CRC32C, RFC 4960 appendix B), as calls of the SDK's client."""

from collections.abc import Sequence
from typing import Any

from betrace_kms_server.providers.gcp.client import Call
from betrace_kms_server.providers.gcp.errors import KeyName
from betrace_kms_server.providers.gcp.sdk import (
    CryptoKey,
    DecryptRequest,
    DecryptResponse,
    EncryptRequest,
    EncryptResponse,
    GenerateRandomBytesRequest,
    GenerateRandomBytesResponse,
    GetCryptoKeyRequest,
    IamPermissionsRequest,
    ProtectionLevel,
    crc32c,
)


def encrypting(key: KeyName, plaintext: bytes, data: bytes) -> Call[EncryptResponse]:
    """Encrypt with the primary version; `data` is the additional authenticated data."""
    request = EncryptRequest(
        name=key.name,
        plaintext=plaintext,
        plaintext_crc32c=crc32c(plaintext),
        additional_authenticated_data=data,
        additional_authenticated_data_crc32c=crc32c(data),
    )
    return lambda kms, options: kms.encrypt(request=request, **options)


def decrypting(key: KeyName, ciphertext: bytes, data: bytes) -> Call[DecryptResponse]:
    """Decrypt with the version that the ciphertext names."""
    request = DecryptRequest(
        name=key.name,
        ciphertext=ciphertext,
        ciphertext_crc32c=crc32c(ciphertext),
        additional_authenticated_data=data,
        additional_authenticated_data_crc32c=crc32c(data),
    )
    return lambda kms, options: kms.decrypt(request=request, **options)


def generating(key: KeyName, number_of_bytes: int) -> Call[GenerateRandomBytesResponse]:
    """Make 8 to 1,024 random bytes in the location of a key. HSM is the only protection level that has them."""
    request = GenerateRandomBytesRequest(
        location=key.parent, length_bytes=number_of_bytes, protection_level=ProtectionLevel.HSM
    )
    return lambda kms, options: kms.generate_random_bytes(request=request, **options)


def describing(key: KeyName) -> Call[CryptoKey]:
    """Describe a key and its primary version."""
    request = GetCryptoKeyRequest(name=key.name)
    return lambda kms, options: kms.get_crypto_key(request=request, **options)


def permitted(key: KeyName, permissions: Sequence[str]) -> Call[Any]:
    """Ask which of some permissions the caller has. It needs none."""
    request = IamPermissionsRequest(resource=key.name, permissions=permissions)
    return lambda kms, options: kms.test_iam_permissions(request=request, **options)
