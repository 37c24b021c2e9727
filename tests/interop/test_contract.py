"""protos/ passes buf's linter, and no change of it may break clients of the last release: protos/released.txtpb."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.interop.tools import ROOT, tool

FOLDER = "protos/betrace/kms/v1"
ADMIN, KEYS, SPAN = (f"{FOLDER}/{name}.proto" for name in ("admin", "key_management", "span"))
REQUEST = "message GetPublicKeysRequest {\n  // Whose keys.\n  string tenant_id = 1;\n"

CHANGES = [
    ("FIELD_NO_DELETE", KEYS, REQUEST, "message GetPublicKeysRequest {\n"),
    ("FIELD_NO_DELETE", KEYS, REQUEST, REQUEST.replace("= 1", "= 2")),
    ("FIELD_SAME_NAME", KEYS, REQUEST, REQUEST.replace("tenant_id", "tenant")),
    ("FIELD_SAME_TYPE", KEYS, REQUEST, REQUEST.replace("string", "bytes")),
    ("FIELD_SAME_CARDINALITY", SPAN, "optional string name", "string name"),
    ("RPC_NO_DELETE", KEYS, "  rpc SignSpan(SignSpanRequest) returns (SignSpanResponse);\n", ""),
    ("RPC_SAME_REQUEST_TYPE", KEYS, "rpc SignSpan(SignSpanRequest)", "rpc SignSpan(SignSpansRequest)"),
    ("RPC_SAME_SERVER_STREAMING", KEYS, "returns (SignSpanResponse)", "returns (stream SignSpanResponse)"),
    ("ENUM_VALUE_SAME_NAME", KEYS, "  UNKNOWN_KEY = 2;", "  NO_KEY = 2;"),
    ("ENUM_VALUE_NO_DELETE", KEYS, "  KEY_REVOKED = 4;\n", ""),
    ("FILE_SAME_PACKAGE", ADMIN, "package betrace.kms.v1;", "package betrace.kms.v2;"),
]  # fmt: skip


def buf(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([tool("buf"), *command], cwd=folder, capture_output=True, text=True, timeout=30, check=False)


def breaking(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Compare with the contract of the last release."""
    return buf(folder, "breaking", "--against", "protos/released.txtpb", "--error-format", "json")


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    """Give a copy of the contract that a test may change."""
    files = [ROOT / "buf.yaml", ROOT / "protos/released.txtpb", *(ROOT / FOLDER).glob("*.proto")]
    for file in files:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    return tmp_path


def change(contract: Path, file: str, old: str, new: str) -> None:
    text = (contract / file).read_text("utf-8")
    assert 1 == text.count(old)
    (contract / file).write_text(text.replace(old, new), "utf-8")


def test_the_contract_has_buf_s_style() -> None:
    """Names, package, and a comment for everything."""
    done = buf(ROOT, "lint")
    assert (0, "") == (done.returncode, done.stdout)


def test_the_contract_is_compatible_with_the_last_release() -> None:
    """Whoever generated stubs from that can call this."""
    done = breaking(ROOT)
    assert (0, "") == (done.returncode, done.stdout)


@pytest.mark.parametrize(("rule", "file", "old", "new"), CHANGES, ids=[rule for rule, *_ in CHANGES])
def test_a_change_that_breaks_clients_is_refused(contract: Path, rule: str, file: str, old: str, new: str) -> None:
    """Each is named by its rule."""
    change(contract, file, old, new)
    done = breaking(contract)
    assert 100 == done.returncode, done.stderr
    assert rule in {json.loads(line)["type"] for line in done.stdout.splitlines()}


def test_an_addition_is_compatible(contract: Path) -> None:
    """A field, a value and a call that old clients do not know."""
    change(contract, KEYS, REQUEST, f"{REQUEST}  // Only those.\n  repeated string key_ids = 2;\n")
    change(contract, KEYS, "  AES_128 = 2;\n", "  AES_128 = 2;\n  // A key of 24 bytes.\n  AES_192 = 3;\n")
    call = "  rpc SignSpan(SignSpanRequest) returns (SignSpanResponse);\n"
    change(contract, KEYS, call, f"{call}{call.replace('rpc SignSpan', 'rpc SignAgain')}")
    done = breaking(contract)
    assert (0, "") == (done.returncode, done.stdout)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  // Whose keys.\n", ""),
        ("// GetPublicKeysRequest asks for a tenant's public keys.\n", ""),
        ("  // SignSpan signs one compliance span with the tenant's active signing key.\n", ""),
        ("  // A key of 16 bytes.\n", ""),
        ("  string jwks = 2;", "  string JWKS = 2;"),
    ],
)
def test_what_has_no_comment_or_another_style_is_refused(contract: Path, old: str, new: str) -> None:
    """A field, a message, a call, a value; and a name."""
    change(contract, KEYS, old, new)
    done = buf(contract, "lint")
    assert (100, True) == (done.returncode, KEYS in done.stdout)
