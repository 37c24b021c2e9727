"""What provider gcp makes of whatever the SDK of Google Cloud raises, and where that SDK may be imported."""

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest
from betrace_kms_server.core.errors import CredentialsUnavailable, KmsError, KmsUnreachable
from betrace_kms_server.providers.gcp import sdk
from betrace_kms_server.providers.gcp.errors import PERMISSIONS, TABLE, KeyName, refused, without_credentials
from betrace_kms_server.providers.gcp.remedies import remedy
from betrace_kms_server.providers.gcp.sdk import auth_errors

from tests.install import ROOT

api_errors: Any = sdk.api_errors

KEY = KeyName("projects/betrace-test/locations/europe-west3/keyRings/ring/cryptoKeys/key")
SAID = "s3cret ya29.token"


def exceptions_of(module: Any) -> list[type[Exception]]:
    """Return the exception classes that a module exports."""
    found = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return [kind for kind in found if kind.__module__ == module.__name__]


def raised(kind: type[Exception]) -> Exception:
    """Return an exception as the SDK makes it; the constructors differ."""
    arguments = (api_errors.ServiceUnavailable(SAID),) if kind is api_errors.RetryError else ()
    return kind(SAID, *arguments)


@pytest.mark.parametrize("action", PERMISSIONS)
@pytest.mark.parametrize(
    "kind", [*exceptions_of(api_errors), *exceptions_of(auth_errors)], ids=lambda kind: kind.__name__
)
def test_every_exception_of_the_sdk_is_ours(kind: type[Exception], action: str) -> None:
    """Each becomes one of our errors, with a next step and without the SDK's words; nothing stays unnamed."""
    error = refused(raised(kind), action, KEY)
    assert isinstance(error, KmsError)
    assert SAID not in error.message
    assert (error.metadata.get("kind") == "sdk") == (kind in UNNAMED), error.message
    if error.metadata.get("kind") != "sdk" and error.reason != "CIPHERTEXT_DOES_NOT_OPEN":
        assert ": " in error.message
    assert remedy(error, KEY)


UNNAMED = {
    api_errors.GoogleAPIError,  # a base, never raised
    api_errors.DuplicateCredentialArgs,  # of making a client
    api_errors.AsyncRestUnsupportedParameterError,  # of a transport that we do not use
}


@pytest.mark.parametrize("kind", exceptions_of(auth_errors), ids=lambda kind: kind.__name__)
def test_every_exception_of_google_auth_is_about_credentials(kind: type[Exception]) -> None:
    """Each says what to check, and none is called a defect."""
    error = without_credentials(kind(SAID))
    assert isinstance(error, CredentialsUnavailable)
    assert (True, False) == (error.metadata["kind"] in {"missing", "rejected", "unreachable"}, SAID in error.message)


@pytest.mark.parametrize("cause", [TimeoutError(), OSError(), asyncio.CancelledError(), KeyError("x")], ids=repr)
def test_what_is_not_of_the_sdk(cause: Any) -> None:
    """No answer in time is an outage, and what nothing expects is a defect of the daemon or the SDK."""
    error = refused(cause, "Encrypt", KEY)
    assert isinstance(error, KmsUnreachable)
    assert isinstance(cause, TimeoutError | OSError) == ("kind" not in error.metadata)


@pytest.mark.parametrize("said", ["failed to connect: Ssl handshake failed", "reason: CERTIFICATE_VERIFY_FAILED"])
def test_tls_that_fails_is_named(said: str) -> None:
    """gRPC says so in the text of UNAVAILABLE alone."""
    cause = api_errors.ServiceUnavailable(said)
    assert "TLS with Cloud KMS fails" in refused(cause, "Encrypt", KEY).message


def test_our_own_error_stays() -> None:
    """What is ours already is not wrapped again."""
    error = KmsUnreachable("x")
    assert error is refused(error, "Encrypt", KEY)


def test_the_table_has_no_row_that_another_hides() -> None:
    """Each row is another class of the SDK, or of Python."""
    assert len(TABLE) == len({kind.__qualname__ for kind in TABLE})


def test_the_sdk_is_imported_in_one_place() -> None:
    """In providers/gcp/sdk.py, which keeps its warnings off. To import-linter, all of google is one package."""
    importing = {str(path.relative_to(ROOT / "server")) for path in (ROOT / "server").rglob("*.py") if _imports(path)}
    assert {"betrace_kms_server/providers/gcp/sdk.py"} == importing


def _imports(path: Path) -> bool:
    of_sdk = ("google.api_core", "google.auth", "google.cloud", "google.iam", "google.oauth2", "google_crc32c")
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        if any(name.startswith(of_sdk) for name in names):
            return True
    return False
