"""The keyType of new messages, from the settings or by the age of the key store, through a whole daemon."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from betrace_kms_client import AsyncKmsClient, KmsClientError
from betrace_kms_envelope import Message

from tests.daemon import running


async def sealed(data_dir: Path, **values: str) -> bytes:
    """Return a message of a daemon that was started on this folder."""
    async with running(data_dir, **values) as daemon, AsyncKmsClient(daemon.addresses[0]) as client:
        return (await client.encrypt("acme", b"secret", {"a": "b"})).ciphertext_blob


def key_type(message: bytes) -> str:
    """Return the keyType in a message's header."""
    return Message.parse(message).context["keyType"]


def as_of_an_earlier_version(data_dir: Path) -> None:
    """Take from a key store what earlier versions did not write."""
    with closing(sqlite3.connect(data_dir / "keystore.db")) as database:
        database.execute("DROP TABLE origin")
        database.commit()


async def test_a_new_key_store_and_an_old_one(tmp_path: Path) -> None:
    """A new store seals with `sealing`, also after a restart; one of an earlier version waits for its operator."""
    assert ["sealing", "sealing"] == [key_type(await sealed(tmp_path)) for _ in range(2)]
    as_of_an_earlier_version(tmp_path)
    assert "encryption" == key_type(await sealed(tmp_path))
    assert "sealing" == key_type(await sealed(tmp_path, kms_encryption_sealing_key_type="sealing"))
    assert "encryption" == key_type(await sealed(tmp_path))


async def test_a_rolling_upgrade(tmp_path: Path) -> None:
    """What was written before the setting changed opens after it, and the other way round."""
    messages = [await sealed(tmp_path, kms_encryption_sealing_key_type=each) for each in ("encryption", "sealing")]
    assert ["encryption", "sealing"] == [key_type(message) for message in messages]
    for each in ("encryption", "sealing"):
        async with (
            running(tmp_path, kms_encryption_sealing_key_type=each) as daemon,
            AsyncKmsClient(daemon.addresses[0]) as client,
        ):
            for message in messages:
                assert b"secret" == (await client.decrypt("acme", message, {"a": "b"})).plaintext
            wrapped = Message.parse(messages[1]).encrypted_data_keys[0].ciphertext
            with pytest.raises(KmsClientError, match=r"does not open|cannot be opened|DECRYPT"):
                await client.decrypt("acme", wrapped, {"a": "b"})
