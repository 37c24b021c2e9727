"""By which names the HTTP port answers: its addresses, localhost, and what the operator lists."""

import pytest
from betrace_kms_server.operations.hosts import misdirected

NAMES = {"kms.internal", "prometheus-target"}


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:9464", "[::1]:9464", "[::1]", "10.1.2.3:9464", "[fd00::7]:9464", "192.168.0.1"),
        *("localhost", "localhost:9464", "LOCALHOST:80", "kms.internal", "KMS.internal:9464", "prometheus-target:1"),
    ],
)
def test_answered(host: str) -> None:
    """IP addresses cannot be rebound; localhost and what is listed are the operator's."""
    assert misdirected([host], NAMES) is None


def test_request_without_a_host_is_answered() -> None:
    """HTTP/1.0 has none, and no browser leaves it out."""
    assert misdirected([], NAMES) is None


@pytest.mark.parametrize(
    "hosts",
    [
        ["evil.example"],
        ["evil.example:9464"],
        ["127.0.0.1.evil.example"],
        ["localhost.evil.example"],
        ["localhost."],
        ["kms.internal."],
        ["notkms.internal"],
        [""],
        [":9464"],
        ["127.0.0.1:"],
        ["127.0.0.1:99999999"],
        ["127.1"],
        ["0x7f000001"],
        ["2130706433"],
        ["user@127.0.0.1"],
        ["127.0.0.1, evil.example"],
        ["127.0.0.1 evil.example"],
        ["127.0.0.1/evil.example"],
        ["[::1"],
        ["::1"],
        ["[evil]"],
        ["[127.0.0.1.evil]"],
        ["127.0.0.1", "evil.example"],
        ["127.0.0.1", "127.0.0.1"],
        ["lоcalhost"],  # noqa: RUF001  # a Cyrillic o
    ],
)
def test_refused_host(hosts: list[str]) -> None:
    """Whatever else a Host says is another server's name."""
    assert "kms.ops.hosts" in (misdirected(hosts, NAMES) or "")
