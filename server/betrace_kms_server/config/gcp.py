"""Settings of provider `gcp`: the key of Cloud KMS, and where Cloud KMS is."""

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from betrace_kms_server.config.values import Endpoint, WholeNumber, Words
from betrace_kms_server.host.sockets import is_loopback

_ID = "[A-Za-z0-9_-]{1,63}"
_KEY = re.compile(rf"projects/[a-z][a-z0-9.:-]{{3,60}}/locations/[a-z0-9-]{{1,63}}/keyRings/{_ID}/cryptoKeys/{_ID}")
"""A project by its id: Cloud KMS need not answer with the number that it was asked with."""
_FORM = "projects/PROJECT_ID/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"


class GcpSettings(BaseModel):
    """`gcp.*`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    gcp_key_name: str | None = Field(
        None, alias="gcp.kms.key-name", description=f"resource name of the master key: `{_FORM}`"
    )
    gcp_decrypt_key_names: Words = Field(
        (), alias="gcp.kms.decrypt-key-names", description="former master keys, for Decrypt only"
    )
    gcp_random: Literal["os", "hsm"] = Field(
        "os", alias="gcp.kms.random", description="generator of data keys: this machine's, or that of Cloud HSM"
    )
    gcp_endpoint: Endpoint | None = Field(
        None,
        alias="gcp.kms.endpoint",
        description="endpoint override: `https://` of a private or regional one, `http://` of an emulator on loopback",
    )
    gcp_call_timeout_ms: WholeNumber = Field(
        5000,
        alias="gcp.kms.call-timeout-ms",
        ge=1,
        le=600_000,
        description="bound on one call to Cloud KMS, its retries included",
    )

    @property
    def gcp_emulated(self) -> bool:
        """Return whether calls go to an emulator, without credentials and in the clear."""
        return (self.gcp_endpoint or "").startswith("http://")

    def gcp_problem(self) -> str | None:
        """Return what is missing or wrong where provider `gcp` is used, or None."""
        if self.gcp_key_name is None:
            return f"gcp.kms.key-name is missing: give {_FORM}"
        if "/cryptoKeyVersions/" in self.gcp_key_name:
            return "gcp.kms.key-name names a version: leave /cryptoKeyVersions/... out, Cloud KMS takes the primary one"
        if not _KEY.fullmatch(self.gcp_key_name):
            return f"gcp.kms.key-name must be {_FORM}, with the project's id and not its number"
        for former in self.gcp_decrypt_key_names:
            if not _KEY.fullmatch(former) or former == self.gcp_key_name:
                return f"gcp.kms.decrypt-key-names: {former!r} must be {_FORM} of another key than gcp.kms.key-name"
        endpoint = urlsplit(self.gcp_endpoint or "")
        if endpoint.path not in ("", "/"):
            return "gcp.kms.endpoint must have no path: write https://HOST"
        if self.gcp_emulated and endpoint.hostname != "localhost" and not is_loopback(endpoint.hostname or ""):
            return "gcp.kms.endpoint must begin with https://: data keys would travel in the clear"
        return None
