"""Official SDKs read rows that a daemon wrapped anew under another master key, and rows that came by an import."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from betrace.kms.v1 import admin_pb2 as pb

from tests.integration.test_branch_key_export import counted, keystore
from tests.interop.hierarchy import BranchKeyLibrary
from tests.interop.pods import Pod, pod, shares, version_in
from tests.interop.sdk import TENANT, Combination

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

ONE = Combination(17, {"record": "17", "größe": "☕"})
pytestmark = pytest.mark.timeout(300)  # a JVM on a busy machine
ROWS = 4
"""Of a branch key with two versions: those, the active one, and the beacon key."""


async def sealed_under_two_versions(here: Pod, library: BranchKeyLibrary, maker: str) -> list[bytes]:
    """Let a daemon or a library make a branch key and a version of it; returns a message of each."""
    if maker == "official":
        library.create(TENANT, {"department": "admin"})
    else:
        await here.client.generate_mac(TENANT, "email", b"alice")  # it makes the branch key and its beacon key
    messages = [await here.seal(ONE)]
    if maker == "official":
        library.rotate(TENANT)
        await here.admin.InvalidateTenant(pb.InvalidateTenantRequest(tenant_id=TENANT))
    else:
        await here.admin.RotateKeys(pb.RotateKeysRequest(tenant_id=TENANT))
    messages.append(await here.seal(ONE))
    assert (ROWS, 2) == (len(library.rows(TENANT)), len(set(map(version_in, messages))))
    return messages


async def check_used(here: Pod, library: BranchKeyLibrary, messages: list[bytes]) -> None:
    """Check that a library opens messages, seals for a daemon, and rotates; all that with a new keyring."""
    theirs = library.sdk(TENANT)
    for message in messages:
        assert (ONE.plaintext, ONE.whole_context) == theirs.open(message)
    sealed = theirs.seal(ONE.plaintext, ONE.whole_context)
    assert version_in(messages[-1]) == version_in(sealed) == library.active_key(TENANT)[0]
    assert ONE.plaintext == await here.open(sealed, ONE)

    library.rotate(TENANT)
    await here.admin.InvalidateTenant(pb.InvalidateTenantRequest(tenant_id=TENANT))
    newest = await here.seal(ONE)
    assert version_in(newest) == library.active_key(TENANT)[0] != version_in(sealed)
    for message in (*messages, newest):
        assert ONE.plaintext == await here.open(message, ONE) == library.sdk(TENANT).open(message)[0]


def masters(library: BranchKeyLibrary) -> set[str]:
    """Return the KMS keys that the rows name."""
    return {row["kms-arn"]["S"] for row in library.rows(TENANT)}


@pytest.mark.parametrize("maker", ["official", "daemon"])
async def test_rows_under_a_new_master_key_are_used(
    tmp_path: Path, moto: "MotoServer", library: BranchKeyLibrary, maker: str
) -> None:
    """Once the daemon has moved them, the former key may be disabled; the beacon key is what it was.

    A library that is told of the former key refuses them, and one that is told of none opens.
    """
    moved = replace(library, kms_key=moto.create_key())
    async with pod(tmp_path / "before", library) as here:
        messages = await sealed_under_two_versions(here, library, maker)
    _, beacon_key = library.beacon(TENANT)
    async with pod(tmp_path / "after", moved, aws_kms_decrypt_key_ids=library.kms_key) as here:
        for _ in range(400):
            if masters(moved) == {moved.kms_key}:
                break
            await asyncio.sleep(0.05)
        assert {moved.kms_key} == masters(moved)
        assert (ONE.plaintext, ONE.whole_context) == replace(library, kms_key="").sdk(TENANT).open(messages[0])
        with pytest.raises(Exception, match="does not match Key Store's configured KMS Key ARN"):
            library.active_key(TENANT)
        moto.kms().disable_key(library.kms_key)
        await check_used(here, moved, messages)
        row, unwrapped = moved.beacon(TENANT)
        assert (moved.kms_key, beacon_key) == (row["kms-arn"]["S"], unwrapped)


async def test_rows_that_came_from_sqlite_are_used(tmp_path: Path, library: BranchKeyLibrary) -> None:
    """A daemon with SQLite made them; an import puts them into the table of a library of that logical name."""
    library = replace(library, logical_name="betrace-kms")
    embedded = shares(library) | {
        "kms_store": "sqlite",
        "kms_store_endpoint": "",
        "kms_store_allow_ephemeral": "true",
        "kms_branch_keys_table": "",
    }
    async with pod(tmp_path / "embedded", library, **embedded) as here:
        await here.client.generate_mac(TENANT, "email", b"alice")
        messages = [await here.seal(ONE)]
        await here.admin.RotateKeys(pb.RotateKeysRequest(tenant_id=TENANT))
        messages.append(await here.seal(ONE))
    assert [] == library.rows(TENANT)
    exported = await keystore("export", "--data-dir", tmp_path / "embedded", values=embedded)
    async with pod(tmp_path / "shared", library) as here:
        imported = await keystore("import", "-", stdin=exported.stdout.encode(), values=here.settings)
        assert (0, counted(added=ROWS)) == (imported.returncode, imported.stdout)
        await check_used(here, library, messages)


async def test_rows_that_came_from_another_table_are_used(tmp_path: Path, library: BranchKeyLibrary) -> None:
    """As after a restore into a table of another name: each row that the library made is as it was."""
    restored = replace(library, table=f"{library.table}-restored")
    restored.make_table()
    async with pod(tmp_path / "before", library) as here:
        messages = await sealed_under_two_versions(here, library, "official")
        exported = await keystore("export", values=here.settings)
    async with pod(tmp_path / "after", restored) as here:
        imported = await keystore("import", "-", stdin=exported.stdout.encode(), values=here.settings)
        assert (0, counted(added=ROWS)) == (imported.returncode, imported.stdout)
        assert library.rows(TENANT) == restored.rows(TENANT)
        await check_used(here, restored, messages)
