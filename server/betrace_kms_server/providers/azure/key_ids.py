"""The name of a key of a vault, and which of its versions an answer names."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

VERSION = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class KeyId:
    """A key without a version, as https://NAME.vault.azure.net/keys/KEY."""

    id: str

    @property
    def vault_url(self) -> str:
        """Address of its vault."""
        parts = urlsplit(self.id)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def vault(self) -> str:
        """Name of its vault."""
        return urlsplit(self.id).netloc.partition(".")[0]

    @property
    def key(self) -> str:
        """Name of the key in its vault."""
        return self.id.rpartition("/")[2]

    @property
    def az(self) -> str:
        """How commands of `az keyvault key` are given it."""
        return f"--{'hsm' if self.in_hsm else 'vault'}-name {self.vault} --name {self.key}"

    @property
    def in_hsm(self) -> bool:
        """Return whether it is a key of a Managed HSM."""
        return ".managedhsm." in self.id

    def version_of(self, kid: object) -> str | None:
        """Return the version that a key id of an answer names, or None if it is not of this key.

        Names of keys are compared without regard to case, as Key Vault does.
        """
        if not isinstance(kid, str):
            return None
        name, _, version = kid.rpartition("/")
        return version if name.casefold() == self.id.casefold() and VERSION.fullmatch(version) else None
