"""Settings of provider `vault`: where OpenBao or Vault is, the transit key, and how the daemon authenticates."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from betrace_kms_server.config.values import Endpoint, WholeNumber
from betrace_kms_server.host.sockets import is_loopback

_PATH = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$"
_NAME = r"^[A-Za-z0-9_.-]{1,128}$"


class VaultSettings(BaseModel):
    """`vault.*`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    vault_address: Endpoint | None = Field(
        None, alias="vault.address", description="address of OpenBao or Vault, `https://HOST:8200`"
    )
    vault_namespace: str | None = Field(
        None, alias="vault.namespace", pattern=_PATH, description="namespace of the transit engine"
    )
    vault_ca_file: Path | None = Field(
        None, alias="vault.ca-file", description="authorities of its certificate, in PEM; the system's by default"
    )
    vault_mount: str = Field(
        "transit", alias="vault.transit.mount", pattern=_PATH, description="path of the transit engine"
    )
    vault_key: str | None = Field(
        None, alias="vault.transit.key", pattern=_NAME, description="name of the transit key, the master key"
    )
    vault_random: Literal["os", "transit"] = Field(
        "os", alias="vault.transit.random", description="generator of data keys: this machine's, or Vault's"
    )
    vault_call_timeout_ms: WholeNumber = Field(
        5000,
        alias="vault.call-timeout-ms",
        ge=1,
        le=600_000,
        description="bound on one call to Vault, its retries included",
    )
    vault_auth: Literal["token", "kubernetes", "approle", "cert"] = Field(
        "kubernetes", alias="vault.auth.method", description="how the daemon authenticates"
    )
    vault_auth_mount: str | None = Field(
        None, alias="vault.auth.mount", pattern=_PATH, description="path of the auth method; its name by default"
    )
    vault_role: str | None = Field(
        None,
        alias="vault.auth.role",
        pattern=_NAME,
        description="role of `kubernetes` and `cert`, role id of `approle`",
    )
    vault_token_file: Path | None = Field(
        None,
        alias="vault.auth.token-file",
        description="file of the token, of `approle`'s secret id, or of the service account's token",
    )
    vault_cert_file: Path | None = Field(
        None, alias="vault.auth.cert-file", description="client certificate of `cert`, in PEM"
    )
    vault_key_file: Path | None = Field(
        None, alias="vault.auth.key-file", description="its private key, in PEM without a passphrase"
    )

    def vault_problem(self) -> str | None:
        """Return what is missing or wrong where provider `vault` is used, or None."""
        if self.vault_address is None:
            return "vault.address is missing: give https://HOST:8200"
        address = urlsplit(self.vault_address)
        if address.scheme == "http" and address.hostname != "localhost" and not is_loopback(address.hostname or ""):
            return "vault.address must begin with https://: data keys would travel in the clear"
        if self.vault_key is None:
            return "vault.transit.key is missing: name the transit key"
        if self.vault_auth in ("token", "approle") and self.vault_token_file is None:
            return f"vault.auth.token-file is missing: vault.auth.method is {self.vault_auth}"
        if self.vault_auth in ("kubernetes", "approle") and self.vault_role is None:
            return f"vault.auth.role is missing: vault.auth.method is {self.vault_auth}"
        if self.vault_auth == "cert" and (self.vault_cert_file is None or self.vault_key_file is None):
            return "vault.auth.cert-file and vault.auth.key-file are needed: vault.auth.method is cert"
        return None
