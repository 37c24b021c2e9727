"""A daemon and the official hierarchical keyring share branch keys: either makes and rotates them, both open all."""

import hmac
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from betrace.kms.v1 import admin_pb2 as pb
from betrace_kms_client import Ciphertext, Plaintext
from betrace_kms_envelope import Message

from tests.interop.hierarchy import BranchKeyLibrary, OfficialBranchKeys
from tests.interop.java_sdk import JavaBranchKeys, JavaError
from tests.interop.pods import Pod, pod, version_in
from tests.interop.sdk import CONTEXTS, SUITES, TENANT, Combination, differing

SIZES = (0, 17, 65_537)
MORE = int(os.environ.get("KEYRING_COMBINATIONS", "162"))
"""How many combinations with each library at least, up to 594; `make test-keyring` asks for 500."""
LARGE = {f"field-{number:03}": "größe ☕ " * 4 for number in range(60)}
"""A context of nearly 4 KiB, the limit."""
ROUNDS = 2 * 3 * (1 + len(SUITES))
"""A maker each, a version each, and sealed here once and there in each suite."""


def combinations(number: int) -> list[Combination]:
    """Return what is sealed each way, so that all ways together are a number of combinations at least."""
    found = [Combination(size, context) for size in SIZES for context in CONTEXTS]
    others = (
        Combination(size, context)
        for size in (1, 4096, 4097, 65_536, 131_072, 200_001)
        for context in (LARGE, *CONTEXTS)
    )
    wanted = -(-number // ROUNDS) - len(found)
    return [*found, *islice(others, max(0, wanted))]


COMBINATIONS = combinations(MORE)


def combinations_for(library: BranchKeyLibrary) -> list[Combination]:
    """Return the combinations without pairs that a library refuses."""

    def taken(context: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in context.items() if value or library.takes_empty_values}

    return [replace(one, context=taken(one.context)) for one in COMBINATIONS]


async def exchanged(here: Pod, library: BranchKeyLibrary) -> list[Combination]:
    """Return which combinations do not open on the other side, both ways, in both suites."""
    combinations, theirs = combinations_for(library), library.sdk(TENANT)

    async def sealed_here(combination: Combination) -> bytes:
        plaintext, context = theirs.open(await here.seal(combination))
        assert combination.whole_context == context
        return plaintext

    failed = await differing(combinations, sealed_here)
    for suite in SUITES:

        async def sealed_there(combination: Combination, suite: int = suite) -> bytes:
            message = theirs.seal(combination.plaintext, combination.whole_context, suite=suite)
            return await here.open(message, combination)

        failed += await differing(combinations, sealed_there)
    return failed


@pytest.mark.parametrize("maker", ["official", "daemon"])
async def test_both_open_what_the_other_seals_whoever_made_and_rotated(
    tmp_path: Path, library: BranchKeyLibrary, maker: str
) -> None:
    """One branch key, three versions, each made by another side: every message opens on both."""
    one = COMBINATIONS[0]
    messages: list[bytes] = []
    async with pod(tmp_path, library) as here:
        if maker == "official":
            library.create(TENANT, {"department": "admin"})
        else:
            await here.seal(one)
        assert [] == await exchanged(here, library)
        messages.append(await here.seal(one))

        library.rotate(TENANT)
        await here.admin.InvalidateTenant(pb.InvalidateTenantRequest(tenant_id=TENANT))
        messages.append(await here.seal(one))
        assert library.active_key(TENANT)[0] == version_in(messages[-1])
        assert [] == await exchanged(here, library)

        rotated = await here.admin.RotateKeys(pb.RotateKeysRequest(tenant_id=TENANT))
        messages.append(await here.seal(one))
        assert (1, library.active_key(TENANT)[0]) == (rotated.rotated, version_in(messages[-1]))
        assert [] == await exchanged(here, library)

        assert 3 == len(set(map(version_in, messages)))
        for message in messages:
            assert one.plaintext == await here.open(message, one) == library.sdk(TENANT).open(message)[0]


async def test_python_java_and_a_daemon_share_a_branch_key(
    tmp_path: Path, official: OfficialBranchKeys, official_java: JavaBranchKeys
) -> None:
    """Java makes it, Python and the daemon make a version each, and every side opens what every side sealed."""
    python = replace(official, table=official_java.table, kms_key=official_java.kms_key)
    everyone = (official_java, python)
    exchanged = [Combination(17, one.context) for one in combinations_for(official_java)[: len(CONTEXTS)]]
    sealed: list[tuple[Combination, bytes]] = []
    async with pod(tmp_path, official_java) as here:

        async def seal() -> None:
            await here.admin.InvalidateTenant(pb.InvalidateTenantRequest(tenant_id=TENANT))
            for combination in exchanged:
                messages = [await here.seal(combination)]
                messages += [one.sdk(TENANT).seal(combination.plaintext, combination.whole_context) for one in everyone]
                assert 1 == len(set(map(version_in, messages)))
                sealed.extend((combination, message) for message in messages)

        official_java.create(TENANT, {"größe": "☕"})
        await seal()
        python.rotate(TENANT)
        await seal()
        await here.admin.RotateKeys(pb.RotateKeysRequest(tenant_id=TENANT))
        await seal()
        official_java.rotate(TENANT)
        await seal()
        assert 4 == len({version_in(message) for _, message in sealed})
        sdks = [one.sdk(TENANT) for one in everyone]
        for combination, message in sealed:
            assert combination.plaintext == await here.open(message, combination)
            for sdk in sdks:
                assert (combination.plaintext, combination.whole_context) == sdk.open(message)


@pytest.mark.parametrize("suite", SUITES, ids=hex)
async def test_frames_of_any_length_come_from_java(tmp_path: Path, official_java: JavaBranchKeys, suite: int) -> None:
    """And messages without frames; the SDK for Python writes frames of some lengths only."""
    theirs = official_java.sdk(TENANT)
    combinations = [Combination(size, {}, frame) for size in (0, 1, 16, 17, 4097) for frame in (0, 1, 15, 16, 4097)]
    official_java.create(TENANT, {"department": "admin"})
    async with pod(tmp_path, official_java) as here:

        async def reopened(combination: Combination) -> bytes:
            whole, length = combination.whole_context, combination.frame_length
            message = theirs.seal(combination.plaintext, whole, suite=suite, frame_length=length)
            assert length == Message.parse(message).frame_length
            return await here.open(message, combination)

        assert [] == await differing(combinations, reopened)


async def test_java_refuses_an_empty_value(tmp_path: Path, official_java: JavaBranchKeys) -> None:
    """As docs/encryption.md says, and neither the daemon nor the SDK for Python does."""
    theirs = official_java.sdk(TENANT)
    async with pod(tmp_path, official_java) as here:
        sealed = await here.seal(Combination(1, {"note": ""}))
        with pytest.raises(JavaError, match="Value length must be greater than 0"):
            theirs.open(sealed)
        with pytest.raises(JavaError, match="keys and values in encryption context must be non-empty"):
            theirs.seal(b"", {"note": ""})


async def test_rotation_of_a_daemon_reaches_the_others(tmp_path: Path, official: OfficialBranchKeys) -> None:
    """A daemon with an empty cache opens every version, and all daemons agree on the newest."""
    one = COMBINATIONS[0]
    async with pod(tmp_path / "one", official) as first, pod(tmp_path / "two", official) as second:
        before = await first.seal(one)
        assert version_in(before) == version_in(await second.seal(one))
        await first.admin.RotateKeys(pb.RotateKeysRequest(all=True))
        after = await first.seal(one)
        assert version_in(before) != version_in(after)
        for message in (before, after):
            assert one.plaintext == await second.open(message, one)


async def test_data_key_mode_opens_messages_of_branch_keys(tmp_path: Path, official: OfficialBranchKeys) -> None:
    """A deployment switches back, and its messages stay readable; the daemon moves them by sealing again."""
    one = COMBINATIONS[0]
    async with pod(tmp_path / "one", official) as here:
        message = await here.seal(one)
    async with pod(tmp_path / "two", official, kms_encryption_mode="data-key") as there:
        assert one.plaintext == await there.open(message, one)
        moved = await there.client.re_encrypt(TENANT, message, one.context, one.context)
        (encrypted,) = Message.parse(moved.ciphertext_blob).encrypted_data_keys
        assert ("aws-kms", one.plaintext) == (encrypted.provider_id, await there.open(moved.ciphertext_blob, one))


async def test_batches_and_files_are_messages_like_others(tmp_path: Path, library: BranchKeyLibrary) -> None:
    """What EncryptBatch and the client's streams seal opens there, and what is sealed there opens with them."""
    combinations, theirs = combinations_for(library), library.sdk(TENANT)
    async with pod(tmp_path, library) as here:
        batch = [(each.plaintext, each.context) for each in combinations]
        sealed = await here.client.encrypt_batch(TENANT, batch)
        for item, each in zip(sealed, combinations, strict=True):
            assert isinstance(item, Ciphertext)
            assert (each.plaintext, each.whole_context) == theirs.open(item.ciphertext_blob)
        messages = [theirs.seal(each.plaintext, each.whole_context) for each in combinations]
        contexts = [each.context for each in combinations]
        opened = await here.client.decrypt_batch(TENANT, list(zip(messages, contexts, strict=True)))
        assert [each.plaintext for each in combinations] == [
            each.plaintext for each in opened if isinstance(each, Plaintext)
        ]
        for message, each in zip(messages, combinations, strict=True):
            stream = here.client.encrypt_stream(TENANT, pieces(each.plaintext), each.context)
            file = b"".join([piece async for piece in stream])
            assert (each.plaintext, each.whole_context) == theirs.open(file)
            back = here.client.decrypt_stream(TENANT, pieces(message), each.context)
            assert each.plaintext == b"".join([piece async for piece in back])


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    """Yield bytes as a caller's stream does, in pieces of an odd size."""
    for at in range(0, len(content), 10_007):
        yield content[at : at + 10_007]


@pytest.mark.parametrize("mode", ["branch-key", "data-key"])
async def test_macs_are_under_the_beacon_key_that_the_official_library_made(
    tmp_path: Path, library: BranchKeyLibrary, mode: str
) -> None:
    """In either mode, as the standard library computes them; the row stays what it was."""
    library.create(TENANT, {"tenantId": TENANT})
    row, beacon_key = library.beacon(TENANT)
    async with pod(tmp_path, library, kms_encryption_mode=mode) as here:
        made = (await here.client.generate_mac(TENANT, "users.email", b"alice")).mac
        assert await here.client.verify_mac(TENANT, "users.email", b"alice", made)
    extracted = hmac.digest(bytes(32), beacon_key, "sha256")
    key = hmac.digest(extracted, b"betrace-kms/mac/v1\x00users.email\x01", "sha256")
    assert hmac.digest(key, b"alice", "sha256") == made
    assert row == library.beacon(TENANT)[0]
