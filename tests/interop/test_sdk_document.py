"""The programs of docs/encryption.md open a daemon's message, with nothing changed but names of the AWS account."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.interop.hierarchy import OfficialBranchKeys
from tests.interop.java_sdk import java
from tests.interop.pods import pod
from tests.interop.sdk import REGION, Combination
from tests.interop.tools import ROOT

pytestmark = pytest.mark.timeout(300)
COMMANDS: dict[str, Callable[[], Sequence[str]]] = {"python": lambda: [sys.executable], "java": java}


def program(language: str, official: OfficialBranchKeys) -> str:
    """Return the program of a language for a table and its KMS key."""
    document = (ROOT / "docs/encryption.md").read_text("utf-8")
    (found,) = re.findall(rf"```{language}\b[^\n]*\n(.*?)```", document, re.DOTALL)
    changed = {
        '"betrace-kms-branch-keys"': f'"{official.table}"',
        "arn:aws:kms:us-east-1:123456789012:key/MASTER": official.kms_key,
    }
    for old, new in changed.items():
        found = found.replace(old, new)
    return str(found)


@pytest.mark.parametrize("language", COMMANDS)
async def test_program(tmp_path: Path, official: OfficialBranchKeys, language: str) -> None:
    """It prints the plaintext, and refuses a message of another record."""
    command = COMMANDS[language]()
    file = tmp_path / f"Open.{language}"
    file.write_text(program(language, official), "utf-8")
    combinations = [Combination(4097, {"record": record}) for record in ("17", "18")]
    async with pod(tmp_path / "data", official, kms_branch_keys_logical_name=official.table) as here:
        messages = [await here.seal(combination) for combination in combinations]
    done = [
        await asyncio.to_thread(
            subprocess.run,
            [*command, str(file)],
            input=message,
            capture_output=True,
            timeout=60,
            check=False,
            env={
                **os.environ,
                "AWS_ENDPOINT_URL": official.endpoint,
                "AWS_REGION": REGION,
                "AWS_DEFAULT_REGION": REGION,
            },
        )
        for message in messages
    ]
    assert (0, combinations[0].plaintext) == (done[0].returncode, done[0].stdout), done[0].stderr
    assert (1, b"") == (done[1].returncode, done[1].stdout)
    assert b"another record's message" in done[1].stderr
