"""Settings of provider gcp: each that is missing or wrong is named before anything is asked."""

import pytest
from betrace_kms_server.config.settings import Settings
from betrace_kms_server.config.sources import Source, resolve
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.operations.production import inspect_deployment

KEY = "projects/betrace-test/locations/global/keyRings/betrace/cryptoKeys/key"


def settings_of(**changed: str) -> Settings:
    """Return the settings of a daemon with provider gcp; names have `_` for `.` and `-`."""
    given = {"key_name": KEY} | changed
    values = {f"gcp.kms.{name.replace('_', '-')}": value for name, value in given.items()}
    return resolve([Source("test", {"betrace.kms.provider": "gcp", **values})])[0]


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        "projects/example.com:betrace/locations/europe-west3/keyRings/R_1/cryptoKeys/K-1",
        "projects/betrace-test/locations/nam4/keyRings/r/cryptoKeys/k",
    ],
)
def test_keys(key: str) -> None:
    """Also of a project whose id has a domain, and of a multi-region."""
    assert key == settings_of(key_name=key).gcp_key_name


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"key_name": ""}, r"gcp\.kms\.key-name is missing: give projects/PROJECT_ID/"),
        ({"key_name": f"{KEY}/cryptoKeyVersions/1"}, r"gcp\.kms\.key-name names a version: leave"),
        ({"key_name": KEY.replace("betrace-test", "123456789012")}, "with the project's id and not its number"),
        ({"key_name": f"{KEY}/"}, r"gcp\.kms\.key-name must be projects/PROJECT_ID/"),
        ({"key_name": f"{KEY}\u00fc"}, r"gcp\.kms\.key-name must be projects/PROJECT_ID/"),
        ({"decrypt_key_names": "key"}, r"gcp\.kms\.decrypt-key-names: 'key' must be projects/"),
        ({"decrypt_key_names": KEY}, r"of another key than gcp\.kms\.key-name"),
        ({"endpoint": "http://kms.example.com"}, "must begin with https://: data keys would travel in the clear"),
        ({"endpoint": "https://kms.example.com/v1"}, r"gcp\.kms\.endpoint must have no path"),
        ({"endpoint": "kms.example.com"}, "is no endpoint"),
        ({"random": "dice"}, r"gcp\.kms\.random"),
        ({"call_timeout_ms": "0"}, r"gcp\.kms\.call-timeout-ms"),
    ],
)
def test_refused_settings(changed: dict[str, str], problem: str) -> None:
    """The sentence says what to write."""
    with pytest.raises(StartRefused, match=problem):
        settings_of(**changed)


@pytest.mark.parametrize(
    ("endpoint", "emulated"),
    [
        ("", False),
        ("https://cloudkms.europe-west3.rep.googleapis.com", False),
        ("http://127.0.0.1:8085", True),
        ("http://[::1]:8085", True),
        ("http://localhost:8085", True),
    ],
)
def test_an_emulator_is_not_for_production(endpoint: str, emulated: bool) -> None:
    """A regional endpoint, or one of Private Service Connect, is as good as the usual one."""
    settings = settings_of(endpoint=endpoint)
    assert emulated == settings.gcp_emulated
    findings = inspect_deployment(settings, callers=None, ephemeral=None, root=False)
    assert emulated == any("gcp.kms.endpoint is set" in finding.problem for finding in findings)


def test_another_provider_needs_none_of_them() -> None:
    """What is not used is not checked, so that a file may serve before and after a move."""
    settings, _ = resolve([Source("test", {"gcp.kms.key-name": "to be made"})])
    assert "local" == settings.provider
