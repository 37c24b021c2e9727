"""Settings of provider `azure`: the keys of a Key Vault or of a Managed HSM. The SDK finds the daemon's credentials."""

import re

from pydantic import BaseModel, ConfigDict, Field

from betrace_kms_server.config.values import WholeNumber

_KEY_ID = re.compile(
    r"(?P<place>https://[a-z0-9-]{3,24}\.(?P<kind>vault|managedhsm)\.(azure\.net|azure\.cn|usgovcloudapi\.net))"
    r"/keys/[A-Za-z0-9-]{1,127}",
    re.ASCII,
)


class AzureSettings(BaseModel):
    """`azure.key-vault.*`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    azure_key_id: str | None = Field(
        None,
        alias="azure.key-vault.key-id",
        description="the master key, `https://NAME.vault.azure.net/keys/KEY` or of a Managed HSM; without a version",
    )
    azure_sign_key_id: str | None = Field(
        None,
        alias="azure.key-vault.sign-key-id",
        description="EC key of the same Key Vault that signs wrapped keys; none with a Managed HSM",
    )
    azure_call_timeout_ms: WholeNumber = Field(
        5000,
        alias="azure.key-vault.call-timeout-ms",
        ge=1,
        le=600_000,
        description="bound on one operation with Key Vault, its retries included",
    )

    def azure_problem(self) -> str | None:
        """Return what is missing or wrong where provider `azure` is used, or None."""
        if self.azure_key_id is None:
            return "azure.key-vault.key-id is missing: give https://NAME.vault.azure.net/keys/KEY"
        key = _KEY_ID.fullmatch(self.azure_key_id)
        if key is None:
            return (
                "azure.key-vault.key-id must be https://NAME.vault.azure.net/keys/KEY or"
                " https://NAME.managedhsm.azure.net/keys/KEY, the host in lower case, without a version"
            )
        if key["kind"] == "managedhsm":
            if self.azure_sign_key_id is not None:
                return "azure.key-vault.sign-key-id is set, and a Managed HSM needs none: leave it out"
            return None
        if self.azure_sign_key_id is None:
            return (
                "azure.key-vault.sign-key-id is missing: name an EC P-256 key of the same vault; RSA alone does not"
                " show who wrapped a key"
            )
        sign_key = _KEY_ID.fullmatch(self.azure_sign_key_id)
        if sign_key is None or sign_key["place"] != key["place"]:
            return f"azure.key-vault.sign-key-id must be {key['place']}/keys/KEY, without a version"
        if self.azure_sign_key_id == self.azure_key_id:
            return "azure.key-vault.sign-key-id names the master key: name another key, of type EC"
        return None
