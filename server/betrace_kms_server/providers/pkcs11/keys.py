"""The names of keys on a token: URIs of the scheme pkcs11 (RFC 7512)."""

from dataclasses import dataclass
from urllib.parse import quote

from betrace_kms_server.core.master_keys import PKCS11_PREFIX


@dataclass(frozen=True, slots=True)
class HsmKey:
    """A secret key on a token, found by its label (CKA_LABEL) and, where it has one here, its id (CKA_ID)."""

    token: str
    label: str
    id: bytes = b""

    @property
    def name(self) -> str:
        """Its name in rows and messages, which depends on neither slot nor library.

        A path attribute of RFC 7512 may hold a few more characters as they are; all but the unreserved ones are encoded
        here, so that a key has one name.
        """
        attributes = [f"token={quote(self.token, safe='')}", f"object={quote(self.label, safe='')}"]
        if self.id:
            attributes.append("id=" + "".join(f"%{byte:02X}" for byte in self.id))
        return PKCS11_PREFIX + ";".join(attributes)

    @property
    def described(self) -> str:
        """What it is searched for by, as pkcs11-tool names it."""
        return f"--label {self.label}" + (f" --id {self.id.hex()}" if self.id else "")


def labelled(token: str, text: str) -> HsmKey:
    """Return the key that a setting names: LABEL, or LABEL;id=HEX."""
    label, _, id_ = text.partition(";id=")
    return HsmKey(token, label, bytes.fromhex(id_))
