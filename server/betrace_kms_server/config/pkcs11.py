"""Settings of provider `pkcs11`: the PKCS#11 library of an HSM, its token, and the keys on it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from betrace_kms_server.config.values import WholeNumber, Words

_LABEL = r"^[^\x00-\x1f\x7f,;]{1,64}$"
_FORMER = re.compile(r"[^\x00-\x1f\x7f,;]{1,64}(;id=([0-9A-Fa-f]{2}){1,64})?")
_TOKEN_LABEL_BYTES = 32


def _formers(value: Any) -> Any:
    for name in value:
        if not _FORMER.fullmatch(name):
            raise ValueError(f"{name!r} names no key: write LABEL, or LABEL;id=HEX")
    return value


def _token(value: str) -> str:
    if len(value.encode()) > _TOKEN_LABEL_BYTES:
        raise ValueError("Input should have at most 32 bytes, as the label of a token")
    return value


class Pkcs11Settings(BaseModel):
    """`pkcs11.*`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    pkcs11_module: Path | None = Field(
        None, alias="pkcs11.module", description="path of the HSM's PKCS#11 library, `/.../lib*.so`"
    )
    pkcs11_token_label: Annotated[str, AfterValidator(_token)] | None = Field(
        None, alias="pkcs11.token-label", pattern=_LABEL, description="label of the token"
    )
    pkcs11_key_label: str | None = Field(
        None,
        alias="pkcs11.key-label",
        pattern=_LABEL,
        description="label (`CKA_LABEL`) of the AES key on the token, the master key",
    )
    pkcs11_key_id: str | None = Field(
        None,
        alias="pkcs11.key-id",
        pattern=r"^([0-9A-Fa-f]{2}){1,64}$",
        description="its id (`CKA_ID`) in hexadecimal digits, where several keys have that label",
    )
    pkcs11_former_key_labels: Annotated[Words, AfterValidator(_formers)] = Field(
        (),
        alias="pkcs11.former-key-labels",
        description="former master keys on the token, to unwrap only: `LABEL`, or `LABEL;id=HEX`",
    )
    pkcs11_pin_file: Path | None = Field(
        None, alias="pkcs11.pin-file", description="file of the PIN of the token's user"
    )
    pkcs11_iv: Literal["os", "token"] = Field(
        "os", alias="pkcs11.iv", description="generator of the IVs of AES-GCM: this machine's, or the token's"
    )
    pkcs11_random: Literal["os", "token"] = Field(
        "os", alias="pkcs11.random", description="generator of data keys: this machine's, or the token's"
    )
    pkcs11_processes: WholeNumber = Field(
        2,
        alias="pkcs11.processes",
        ge=1,
        le=32,
        description="processes that hold the library and a session each; as many calls reach the HSM at a time",
    )
    pkcs11_call_timeout_ms: WholeNumber = Field(
        5000,
        alias="pkcs11.call-timeout-ms",
        ge=1,
        le=600_000,
        description="bound on one call to the HSM, beyond which its process is ended",
    )
    pkcs11_max_wraps: WholeNumber = Field(
        2**32,
        alias="pkcs11.max-wraps",
        ge=1,
        le=2**32,
        description="keys that this daemon wraps under one master key; its share where several daemons use it",
    )

    def pkcs11_problem(self) -> str | None:
        """Return what is missing where provider `pkcs11` is used, or None."""
        if self.pkcs11_module is None:
            return "pkcs11.module is missing: give the path of the HSM's PKCS#11 library"
        if self.pkcs11_token_label is None:
            return "pkcs11.token-label is missing: name the token"
        if self.pkcs11_key_label is None:
            return "pkcs11.key-label is missing: name the AES key on the token"
        if self.pkcs11_pin_file is None:
            return "pkcs11.pin-file is missing: name a file with the PIN of the token's user"
        if not self.pkcs11_module.is_absolute():
            return "pkcs11.module must be an absolute path, so that no other library is found in its place"
        return None
