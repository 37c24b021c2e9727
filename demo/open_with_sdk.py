"""Open a message with the official AWS Encryption SDK and the KMS key alone: python open_with_sdk.py ARN FILE

Nothing of betrace-kms is imported here: this is what remains if you leave.
"""

import sys
from pathlib import Path

from aws_encryption_sdk import (  # type: ignore[import-untyped]
    CommitmentPolicy,
    EncryptionSDKClient,
    StrictAwsKmsMasterKeyProvider,
)

if __name__ == "__main__":
    key, file = sys.argv[1:]
    client = EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
    plaintext, header = client.decrypt(
        source=Path(file).read_bytes(), key_provider=StrictAwsKmsMasterKeyProvider(key_ids=[key])
    )
    print(plaintext.decode())
