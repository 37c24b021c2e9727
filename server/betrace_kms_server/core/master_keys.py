"""What the name of a master key says, in rows and in messages: the names of two providers never meet."""

AZURE_PREFIX = "https://"
LOCAL_PREFIX = "arn:betrace:kms:local::key/"
VAULT_PREFIX = "vault:"
PKCS11_PREFIX = "pkcs11:"
GCP_PREFIX = "projects/"
_PREFIXES = {
    AZURE_PREFIX: "azure",
    LOCAL_PREFIX: "local",
    VAULT_PREFIX: "vault",
    PKCS11_PREFIX: "pkcs11",
    GCP_PREFIX: "gcp",
}
_MESSAGE_PROVIDER_IDS = {
    "aws": "aws-kms",  # what official SDKs look for
    "local": "betrace-local",
}

_STEPS = {
    "aws": "list it in aws.kms.decrypt-key-ids",
    "pkcs11": "list its label in pkcs11.former-key-labels",
    "gcp": "list it in gcp.kms.decrypt-key-names",
}


def provider_of(master_key: str) -> str:
    """Return the provider of a master key. What no other provider names so is AWS's: an ARN, an alias or a bare id."""
    return next((provider for prefix, provider in _PREFIXES.items() if master_key.startswith(prefix)), "aws")


def message_provider_id(master_key: str) -> str:
    """Return the provider id that an AWS Encryption SDK message gives a data key that this master key wrapped."""
    provider = provider_of(master_key)
    return _MESSAGE_PROVIDER_IDS.get(provider, provider)


def step_to_configure(master_key: str, provider: str) -> str:
    """Return what lets a daemon of `provider` unwrap what a master key wrapped that it does not know."""
    owner = provider_of(master_key)
    if owner != provider:
        return f"add {owner} to kms.former-providers"
    return _STEPS.get(owner, "configure that key again")
