"""What the PKCS#11 library is asked for: a session on one token, and AES-GCM with keys that never leave it.

It runs in a process of its own (worker.py) with one thread for it. python-pkcs11 passes no locks to C_Initialize, so a
library may rely on one thread at a time (PKCS #11 v3.1, C_Initialize); SoftHSM 2.6 then crashes under several.

AES-GCM has an IV of 12 bytes and a tag of 128 bits. A token that makes the IV writes it into the memory of the
parameter, which some want to be zero before. So the IV is read from there after the call, and that memory belongs to no
other object.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pkcs11
from pkcs11 import Attribute, GCMParams, Mechanism, PKCS11Error, SecretKey, TokenFlag
from pkcs11.exceptions import AttributeSensitive, AttributeTypeInvalid, FunctionFailed

IV_BYTES, TAG_BITS = 12, 128
FLAGS = (
    "SENSITIVE",
    "ALWAYS_SENSITIVE",
    "EXTRACTABLE",
    "NEVER_EXTRACTABLE",
    "PRIVATE",
    "ENCRYPT",
    "DECRYPT",
)
"""Attributes of a key that the provider judges, without their CKA_."""


class Fault(Exception):
    """What is wrong, by a name that is none of the SDK's exceptions, or one of them."""

    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(name)
        self.name = name
        self.detail = detail
        """Labels of tokens."""


class Hsm:
    """A session on a token, logged in. Its methods raise Fault and the SDK's PKCS11Error."""

    def __init__(self, module: str, token: str, pin: str, *, token_iv: bool) -> None:
        """Load a library, and log in to the token of that label by at most one try of the PIN."""
        try:
            library = pkcs11.lib(module)
        except PKCS11Error as cause:
            if str(cause).startswith("OS exception"):  # of dlopen(3), or there is no C_GetFunctionList
                raise Fault("ModuleNotLoaded", str(cause).rpartition(": ")[2]) from cause
            raise
        found = list(library.get_tokens())
        matching = [each for each in found if each.label == token]
        if len(matching) != 1:
            labels = ", ".join(sorted(each.label for each in found if each.flags & TokenFlag.TOKEN_INITIALIZED))
            raise Fault("MultipleTokensReturned" if matching else "NoSuchToken", labels)
        if Mechanism.AES_GCM not in matching[0].slot.get_mechanisms():
            raise Fault("NoAesGcm")
        if matching[0].flags & TokenFlag.USER_PIN_LOCKED:
            raise Fault("PinLocked")
        if matching[0].flags & TokenFlag.USER_PIN_FINAL_TRY:
            raise Fault("PinFinalTry")
        self._session = matching[0].open(user_pin=pin)
        self._token_iv = token_iv
        self._keys: dict[tuple[str, bytes], Any] = {}

    def close(self) -> None:
        """Log out and close the session."""
        self._session.close()

    def describe(self, label: str, id_: bytes) -> Mapping[str, Any]:
        """Return a key's type and its flags, None for each that the token does not have. The key is searched anew."""
        self._keys.pop((label, id_), None)
        key = self._key(label, id_)
        kind = _attribute(key, Attribute.KEY_TYPE)
        return {"type": getattr(kind, "name", None)} | {name: _attribute(key, Attribute[name]) for name in FLAGS}

    def random(self, number_of_bytes: int) -> bytes:
        """Return bytes of the token's generator."""
        return self._session.generate_random(number_of_bytes * 8)

    def encrypt(self, label: str, id_: bytes, plaintext: bytes, aad: bytes) -> tuple[bytes, bytes]:
        """Return an IV, and the ciphertext with its tag."""
        encrypt = self._function("encrypt", label, id_)
        iv = bytes(IV_BYTES) if self._token_iv else os.urandom(IV_BYTES)  # each is an object of its own
        parameters = GCMParams(iv, aad, TAG_BITS)
        return iv, encrypt(plaintext, mechanism=Mechanism.AES_GCM, mechanism_param=parameters)

    def decrypt(self, label: str, id_: bytes, iv: bytes, ciphertext: bytes, aad: bytes) -> bytes:
        """Return what was encrypted."""
        decrypt = self._function("decrypt", label, id_)
        parameters = GCMParams(iv, aad, TAG_BITS)
        plaintext: bytes = decrypt(ciphertext, mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
        return plaintext

    def _function(self, name: str, label: str, id_: bytes) -> Any:
        """Return a function of a key, which has those that its attributes allow."""
        function = getattr(self._key(label, id_), name, None)
        if function is None:
            raise Fault("KeyFunctionNotPermitted")
        return function

    def _key(self, label: str, id_: bytes) -> Any:
        known = self._keys.get((label, id_))
        if known is not None:
            return known
        template: dict[Attribute, Any] = {Attribute.LABEL: label}
        if id_:
            template[Attribute.ID] = id_
        found: Sequence[Any] = list(self._session.get_objects(template))
        secret = [each for each in found if isinstance(each, SecretKey)]
        if len(secret) != 1:
            raise Fault("MultipleObjectsReturned" if secret else "NotASecretKey" if found else "NoSuchKey")
        self._keys[label, id_] = secret[0]
        return secret[0]


def _attribute(key: Any, attribute: Attribute) -> Any:
    try:
        return key[attribute]
    except (AttributeSensitive, AttributeTypeInvalid, FunctionFailed, ValueError):
        return None  # the token has no such attribute, or an unknown value of it
