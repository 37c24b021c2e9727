"""Messages whose data key a branch key wraps: each has a data key of its own, and costs KMS nothing while warm."""

import os
from dataclasses import dataclass, field

from betrace_kms_envelope import DATA_KEY_BYTES, Message, Sealer

from betrace_kms_server.core.errors import DoesNotOpen, KmsError
from betrace_kms_server.core.key_event import KeyEvent
from betrace_kms_server.core.keys import KeyMaterial
from betrace_kms_server.core.tenancy import Context
from betrace_kms_server.data_keys.branch_keys import BranchKeys
from betrace_kms_server.data_keys.hierarchy import BranchKey, version_of
from betrace_kms_server.data_keys.results import MessageKey, OpeningKey, Sealed


class BranchMessages:
    """Keys of messages, under branch keys. `seals` says whether new messages are sealed so."""

    def __init__(self, branch_keys: BranchKeys, *, seals: bool) -> None:
        self.seals = seals
        self._branch_keys = branch_keys

    async def sealing_key(self, tenant_id: str, context: Context, event: KeyEvent | None) -> "BranchSealingKey":
        """Return what seals messages with this whole context."""
        return BranchSealingKey(await self._branch_keys.active(tenant_id, event), context)

    async def key_of(self, tenant_id: str, message: Message, event: KeyEvent | None) -> OpeningKey | None:
        """Return the data key of a message whose context is the tenant's; None if the tenant's branch key opens none.

        Raises the error that kept a key from being tried, if no other key under a branch key opens.
        """
        failure: KmsError | None = None
        try:
            for encrypted in message.encrypted_data_keys:
                version = version_of(encrypted)
                if version is None or encrypted.provider_info != tenant_id:
                    continue
                try:
                    branch_key = await self._branch_keys.version(tenant_id, version, event)
                    data_key = KeyMaterial(branch_key.unwrap(encrypted, message.context))
                except DoesNotOpen:
                    continue
                except KmsError as error:
                    failure = error
                else:
                    return OpeningKey(data_key, branch_key.master_key_arn)
            if failure is not None:
                raise failure
            return None
        finally:
            del failure  # its traceback holds this frame, and so what the caller sent


@dataclass(frozen=True, slots=True)
class BranchSealingKey:
    """A branch key that wraps the data keys of messages with one whole context."""

    branch_key: BranchKey
    context: Context = field(repr=False)

    def message_key(self) -> MessageKey:
        """Return a new data key."""
        data_key = KeyMaterial(os.urandom(DATA_KEY_BYTES))
        encrypted = self.branch_key.wrap(data_key.raw, self.context)
        return MessageKey(data_key, encrypted, self.context, self.branch_key.master_key_arn)

    def seal(self, plaintext: bytes) -> Sealed:
        """Seal a payload under a data key of its own."""
        key = self.message_key()
        return Sealed(Sealer(key.encrypted, self.context).seal(plaintext, key.material.raw), key.master_key_arn)
