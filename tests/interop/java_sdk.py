"""The official AWS Encryption SDK for Java, in one JVM for all that is asked of it: see java/sdk/BranchKeys.java."""

import json
import os
import secrets
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.interop.hierarchy import BranchKeyLibrary
from tests.interop.sdk import REGION
from tests.interop.tools import ROOT, tool

FOLDER = ROOT / "tests" / "interop" / "java" / "sdk"
CLASSES = FOLDER / "jars" / "*"


def java() -> list[str]:
    """Return a command that runs a Java source file with the SDK; skip if something is missing, or fail in CI."""
    tool("javac")  # a runtime alone compiles no source file
    command = [tool("java"), "-cp", str(CLASSES)]
    if any(CLASSES.parent.glob("*.jar")):
        return command
    reason = "the AWS Encryption SDK for Java is not installed: make java-libraries installs it, with Maven"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class JavaError(Exception):
    """What the program threw, or that it ended."""


class Jvm:
    """The program as it runs: answers one request after the other."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request, or raise JavaError."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"error": "it ended"}')
        if "error" in answer:
            raise JavaError(answer["error"])
        return answer


@contextmanager
def running_jvm(endpoint: str) -> Iterator[Jvm]:
    """Run the program with the AWS of an endpoint; it ends with its standard input."""
    command = [*java(), str(FOLDER / "BranchKeys.java"), endpoint, REGION]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Jvm(process)


@dataclass(frozen=True)
class JavaSdk:
    """The SDK with one hierarchical keyring."""

    jvm: Jvm
    keyring: Mapping[str, str]

    def seal(
        self, plaintext: bytes, context: Mapping[str, str], *, suite: int = 0x0478, frame_length: int = 4096
    ) -> bytes:
        """Return a message with frames of any length, or of 0 (non-framed)."""
        sealed = self.jvm.ask(
            op="seal",
            suite=suite,
            frameLength=frame_length,
            context=dict(context),
            data=b64encode(plaintext).decode(),
            **self.keyring,
        )
        return b64decode(sealed["data"])

    def open(self, message: bytes) -> tuple[bytes, dict[str, str]]:
        """Return a message's plaintext and the whole context of its header."""
        opened = self.jvm.ask(op="open", data=b64encode(message).decode(), **self.keyring)
        return b64decode(opened["data"]), opened["context"]


@dataclass(frozen=True)
class JavaBranchKeys(BranchKeyLibrary):
    """The branch key store of the official library for Java."""

    jvm: Jvm

    takes_empty_values = False

    def _ask(self, op: str, **request: Any) -> dict[str, Any]:
        return self.jvm.ask(op=op, **self._store, **request)

    @property
    def _store(self) -> dict[str, str]:
        return {"table": self.table, "logicalName": self.logical_name, "kmsKey": self.kms_key}

    def make_table(self) -> None:
        self._ask("makeTable")

    def create(self, branch_key_id: str, context: dict[str, str]) -> None:
        self._ask("create", id=branch_key_id, context=context)

    def rotate(self, branch_key_id: str) -> None:
        self._ask("rotate", id=branch_key_id)

    def active_key(self, branch_key_id: str) -> tuple[str, bytes]:
        active = self._ask("active", id=branch_key_id)
        return active["version"], b64decode(active["data"])

    def sdk(self, branch_key_id: str) -> JavaSdk:
        return JavaSdk(self.jvm, {**self._store, "id": branch_key_id, "keyring": secrets.token_hex(8)})
