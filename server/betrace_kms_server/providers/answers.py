"""Checks what a key-management service answers, before anything is made of it.

Every adapter makes its keys by an `Answers` and by nothing else, inside the call that it observes, so that a bad answer
is refused and counted alike for all of them (kms_errors_total, reason KMS_BAD_ANSWER). A service that is broken, an
emulator that ignores a parameter, or a proxy that alters an answer would otherwise have us seal under an empty key, or
hand out a key that cannot be unwrapped again. tests/contract/test_bad_answers.py holds every adapter to it.

Sizes are those of the AWS KMS API reference; no other service that we support makes larger keys.
"""

from dataclasses import dataclass

from betrace_kms_server.aws.arns import are_replicas, region_of
from betrace_kms_server.core.errors import BadAnswer
from betrace_kms_server.core.keys import DataKey, KeyMaterial, WrappedKey

MAX_PLAINTEXT_BYTES = 4096
MAX_BLOB_BYTES = 6144


@dataclass(frozen=True, slots=True)
class Answers:
    """Checks the answers of one service. `action` is written before the name of an operation, as in "kms:Decrypt"."""

    service: str
    action: str
    check: str
    """What an operator is to check: completes "check what answers there, "."""

    def data_key(self, asked: str, number_of_bytes: int, *, plaintext: object, blob: object, key_id: object) -> DataKey:
        """Return the data key of `number_of_bytes` bytes that the master key `asked` made. Raises BadAnswer."""
        action = "GenerateDataKey"
        material = _material(self._bytes(action, asked, "key", plaintext, number_of_bytes, number_of_bytes))
        return DataKey(material, self.wrapped_key(asked, blob=blob, key_id=key_id, action=action))

    def wrapped_key(self, asked: str, *, blob: object, key_id: object, action: str = "Encrypt") -> WrappedKey:
        """Return the key that the master key `asked` wrapped. Raises BadAnswer."""
        wrapped = bytes(self._bytes(action, asked, "wrapped key", blob, 1, MAX_BLOB_BYTES))
        return WrappedKey(wrapped, self.master_key(action, asked, key_id))

    def unwrapped_key(self, asked: str, *, plaintext: object, key_id: object) -> KeyMaterial:
        """Return the key that the master key `asked` unwrapped. Raises BadAnswer.

        The caller checks the length where it knows one: a caller of the daemon may present a wrapped key of any length.
        """
        action = "Decrypt"
        self.master_key(action, asked, key_id)
        return _material(self._bytes(action, asked, "key", plaintext, 1, MAX_PLAINTEXT_BYTES))

    def master_key(self, action: str, asked: str, answered: object) -> str:
        """Return the ARN of the master key that answered: the one that was asked, or its replica. Raises BadAnswer."""
        if not isinstance(answered, str) or not _is_asked(asked, answered):
            named = repr(answered[:200]) if isinstance(answered, str) else "no master key"
            raise self.bad(action, asked, f"names {named}, which is not the one that was asked")
        return answered

    def bad(self, action: str, asked: str, problem: str) -> BadAnswer:
        """Return the error for an answer. `problem` completes "the answer ..." and must not show what was answered."""
        return BadAnswer(
            f"the answer of {self.service} to {self.action}{action} on {asked} {problem}: it was not used; check what"
            f" answers there, {self.check}",
            metadata={"action": f"{self.action}{action}", "master_key": asked},
        )

    def _bytes(
        self, action: str, asked: str, name: str, value: object, at_least: int, at_most: int
    ) -> bytes | bytearray:
        if not isinstance(value, bytes | bytearray):
            raise self.bad(action, asked, f"holds no {name}")
        if not at_least <= len(value) <= at_most:
            expected = str(at_most) if at_least == at_most else f"{at_least} to {at_most}"
            raise self.bad(action, asked, f"holds a {name} of {len(value)} bytes instead of {expected}")
        return value


def _is_asked(asked: str, answered: str) -> bool:
    if answered == asked or are_replicas(answered, asked):
        return True
    if region_of(asked) is not None or region_of(answered) is None:
        return False
    return asked.startswith("alias/") or answered.endswith(f":key/{asked}")  # emulators only


def _material(answered: bytes | bytearray) -> KeyMaterial:
    """Return a key, and wipe what it came in if that can be wiped."""
    material = KeyMaterial(answered)
    if isinstance(answered, bytearray):
        answered[:] = bytes(len(answered))
    return material
