"""What is used of the SDK of Google Cloud, imported in one place, without its warning about our grpcio.

The SDK warns, at its import, that grpcio below 1.83 has no post-quantum key exchange. The cap on grpcio is ours
(docs/adr/0009), and the warning is no news to an operator; docs/providers/gcp.md has the limitation.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import google.auth as auth
    from google.api_core import exceptions as api_errors
    from google.auth import exceptions as auth_errors
    from google.auth.credentials import Credentials, TokenState
    from google.auth.transport.requests import Request
    from google.cloud.kms_v1 import KeyManagementServiceAsyncClient
    from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport
    from google.cloud.kms_v1.types import (
        CryptoKey,
        CryptoKeyVersion,
        DecryptRequest,
        DecryptResponse,
        EncryptRequest,
        EncryptResponse,
        GenerateRandomBytesRequest,
        GenerateRandomBytesResponse,
        GetCryptoKeyRequest,
        ProtectionLevel,
    )
    from google.iam.v1.iam_policy_pb2 import TestIamPermissionsRequest as IamPermissionsRequest
    from google_crc32c import value as crc32c

__all__ = [
    "Credentials",
    "CryptoKey",
    "CryptoKeyVersion",
    "DecryptRequest",
    "DecryptResponse",
    "EncryptRequest",
    "EncryptResponse",
    "GenerateRandomBytesRequest",
    "GenerateRandomBytesResponse",
    "GetCryptoKeyRequest",
    "IamPermissionsRequest",
    "KeyManagementServiceAsyncClient",
    "KeyManagementServiceGrpcAsyncIOTransport",
    "ProtectionLevel",
    "Request",
    "TokenState",
    "api_errors",
    "auth",
    "auth_errors",
    "crc32c",
]
