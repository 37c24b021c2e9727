"""The official AWS Encryption SDK for JavaScript opens what we seal, and we open what it seals."""

import json
import os
import shutil
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from betrace_kms_envelope import Message

from tests.interop.sdk import (
    CONTEXTS,
    MIB,
    SUITES,
    TENANT,
    Combination,
    differing,
    key_ring,
    unsigned,
    whole_context,
)
from tests.interop.tools import PATH, ROOT

if TYPE_CHECKING:
    from tests.moto_server import MotoServer

PROGRAM = ROOT / "tests" / "interop" / "node" / "messages.mjs"

SEALED_HERE = [
    *(Combination(size, context) for size in (0, 1, 17, 65_535, 65_536, 65_537) for context in CONTEXTS),
    Combination(MIB, CONTEXTS[-1]),
]
SEALED_THERE = [  # unlike the SDK for Python, this one writes frames of any length, but no non-framed messages
    *(
        Combination(size, context, frame_length)
        for context in CONTEXTS
        for size, frame_length in (
            (0, 1), (1, 1), (17, 1), (15, 16), (16, 16), (17, 16), (256, 16), (4095, 4096), (4096, 4096), (4097, 4096),
            (65_536, 65_536), (65_537, 65_536), (65_537, MIB),
        )
    ),
    Combination(MIB, CONTEXTS[-1], frame_length=4096),
    Combination(MIB, CONTEXTS[-1], frame_length=MIB),
]  # fmt: skip


def node() -> str:
    """Return the path of Node.js; skip the test if it or its packages are missing, or fail it in CI."""
    found = shutil.which("node", path=PATH)
    if found is not None and (PROGRAM.parent / "node_modules").is_dir():
        return found
    missing = "Node.js 20 or newer" if found is None else "the AWS Encryption SDK for JavaScript"
    reason = f"{missing} is not installed: make node-modules installs the SDK, with npm"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def answers(requests: Iterable[Mapping[str, Any]]) -> list[tuple[bytes, dict[str, str]]]:
    """Return what the JavaScript side answers to these requests: data and the whole context, in order."""
    done = subprocess.run(
        [node(), str(PROGRAM)],
        input="".join(f"{json.dumps(request)}\n" for request in requests),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answered = [json.loads(line) for line in done.stdout.splitlines()]
    assert [] == [answer["error"] for answer in answered if "error" in answer]
    return [(b64decode(answer["data"]), answer["context"]) for answer in answered]


def seal(endpoint: str, suite: int, combination: Combination, *keys: str) -> dict[str, Any]:
    """Ask the JavaScript side for a message."""
    return {
        "op": "seal",
        "keys": keys,
        "endpoint": endpoint,
        "suite": suite,
        "frameLength": combination.frame_length,
        "context": combination.whole_context,
        "data": b64encode(combination.plaintext).decode(),
    }


async def test_the_sdk_opens_what_we_seal(moto: "MotoServer", kms_key: str) -> None:
    """It needs nothing but the KMS key, and reads the whole context in the header."""
    request = {"op": "open", "keys": [kms_key], "endpoint": moto.url}
    async with key_ring(moto.url, kms_key) as ours:
        sealed = [(await ours.seal(TENANT, one.plaintext, one.context)).ciphertext for one in SEALED_HERE]
    opened = iter(answers({**request, "data": b64encode(message).decode()} for message in sealed))

    async def reopened(combination: Combination) -> bytes:
        plaintext, context = next(opened)
        assert combination.sealed_context == context
        return plaintext

    assert [] == await differing(SEALED_HERE, reopened)


@pytest.mark.parametrize("suite", SUITES, ids=hex)
async def test_we_open_what_the_sdk_seals(moto: "MotoServer", kms_key: str, suite: int) -> None:
    """Framed in any length, signed or not, with the context that names tenant and use."""
    sealed = iter(answers(seal(moto.url, suite, combination, kms_key) for combination in SEALED_THERE))
    async with key_ring(moto.url, kms_key) as ours:

        async def reopened(combination: Combination) -> bytes:
            message, context = next(sealed)
            header = Message.parse(message)
            assert (suite, combination.frame_length) == (header.suite, header.frame_length)
            assert combination.whole_context == unsigned(context)
            return (await ours.open(TENANT, message, combination.context)).plaintext

        assert [] == await differing(SEALED_THERE, reopened)


@pytest.mark.parametrize("suite", SUITES, ids=hex)
async def test_a_message_for_two_kms_keys_opens_with_ours(moto: "MotoServer", kms_key: str, suite: int) -> None:
    """Wherever our key stands among the encrypted data keys."""
    other = moto.create_key()
    combination = Combination(17, {}, frame_length=16)
    sealed = answers(seal(moto.url, suite, combination, *arns) for arns in ((kms_key, other), (other, kms_key)))
    async with key_ring(moto.url, kms_key) as ours:
        for message, _ in sealed:
            assert sorted((kms_key, other)) == sorted(
                key.provider_info for key in Message.parse(message).encrypted_data_keys
            )
            opened = await ours.open(TENANT, message, {})
            assert (combination.plaintext, kms_key) == (opened.plaintext, opened.master_key_arn)
    assert whole_context({}) == unsigned(sealed[0][1])
