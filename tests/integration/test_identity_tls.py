"""Who is let in by mutual TLS: names of certificates, their renewal, and what is refused."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from betrace_kms_client import AsyncKmsClient, KmsClient, Unauthenticated, Unavailable
from betrace_kms_server.rpc import server as rpc_server
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.authority import Authority, Pair
from tests.daemon import running, spawned
from tests.integration.callers import (
    FIRST,
    bearer,
    eventually,
    refused_start,
    status_of,
)

TRUSTED, FOREIGN = Authority(), Authority()
SPIFFE = "spiffe://example.org/backend"


@dataclass(frozen=True)
class OverTls:
    """A daemon with mutual TLS on TCP, and its files."""

    address: str
    folder: Path


@pytest.fixture
async def over_tls(tmp_path: Path) -> AsyncIterator[OverTls]:
    """Run a daemon with mutual TLS."""
    folder = tmp_path / "tls"
    chain, key = TRUSTED.issue("daemon", host="127.0.0.1").write(folder)
    (folder / "ca.crt").write_bytes(TRUSTED.pem)
    async with running(
        tmp_path / "data",
        kms_server_listen=f"unix:{tmp_path}/kms.sock,127.0.0.1:0",
        kms_server_tls_cert_file=str(chain),
        kms_server_tls_key_file=str(key),
        kms_server_tls_client_ca_file=str(folder / "ca.crt"),
        kms_audit_file=str(tmp_path / "audit.log"),
    ) as daemon:
        yield OverTls(daemon.addresses[1], folder)


def presenting(over_tls: OverTls, pair: Pair | None, folder: str = "client") -> AsyncKmsClient:
    """Return a client that has this certificate."""
    files = pair.write(over_tls.folder / folder) if pair else ("", "")
    return AsyncKmsClient(
        over_tls.address,
        timeout=5,
        tls_ca_file=over_tls.folder / "ca.crt",
        tls_cert_file=files[0],
        tls_key_file=files[1],
    )


BAD_CERTIFICATES: dict[str, tuple[Callable[[], Pair | None], type[Exception]]] = {
    "none": (lambda: None, Unavailable),
    "of another authority": (lambda: FOREIGN.issue("me", uris=[SPIFFE]), Unavailable),
    "of another authority with the same name": (lambda: Authority().issue("me", uris=[SPIFFE]), Unavailable),
    "expired": (lambda: TRUSTED.issue("me", uris=[SPIFFE], end=timedelta(minutes=-5)), Unavailable),
    "not valid yet": (lambda: TRUSTED.issue("me", uris=[SPIFFE], begin=timedelta(minutes=30)), Unavailable),
    "a server's": (
        lambda: TRUSTED.issue("me", uris=[SPIFFE], usage=ExtendedKeyUsageOID.SERVER_AUTH),
        Unavailable,
    ),
    "two SPIFFE ids": (lambda: TRUSTED.issue("me", uris=[SPIFFE, SPIFFE + "2"]), Unauthenticated),
    "a SPIFFE id and another URI": (lambda: TRUSTED.issue("me", uris=[SPIFFE, "https://a/"]), Unauthenticated),
    "a URI that is no SPIFFE id": (lambda: TRUSTED.issue("me", uris=["https://example.org/"]), Unauthenticated),
    "an empty SPIFFE id": (lambda: TRUSTED.issue("me", uris=["spiffe://"]), Unauthenticated),
    "without any name": (lambda: TRUSTED.issue(""), Unauthenticated),
}


@pytest.mark.parametrize("case", BAD_CERTIFICATES)
async def test_refused_certificate(over_tls: OverTls, case: str) -> None:
    """A certificate that is not good ends the handshake; one without one name is not authenticated."""
    make, expected = BAD_CERTIFICATES[case]
    async with presenting(over_tls, make()) as client:
        with pytest.raises(expected):
            await client.generate_data_key("acme")


async def test_refused_in_the_clear(over_tls: OverTls) -> None:
    """The TCP address speaks TLS only, whatever token a caller has."""
    assert grpc.StatusCode.UNAVAILABLE == await asyncio.to_thread(status_of, over_tls.address, bearer(FIRST))


async def test_let_in_by_a_certificate(over_tls: OverTls) -> None:
    """The SPIFFE id is the identity, and without a URI the whole subject, in the audit line too."""
    for number, pair in enumerate((TRUSTED.issue("me", uris=[SPIFFE]), TRUSTED.issue("backend"))):
        async with presenting(over_tls, pair, f"client{number}") as client:
            await client.generate_data_key("acme")
    trail = over_tls.folder.parent / "audit.log"

    async def both() -> bool:
        text = trail.read_text()
        return f'"identity":"{SPIFFE}"' in text and '"identity":"CN=backend"' in text

    await eventually(both)


async def test_a_new_certificate_is_served_to_new_connections(over_tls: OverTls) -> None:
    """cert-manager exchanges a symbolic link, SPIRE replaces files: both are seen, and a bad pair is not taken."""
    renewed = Authority("another authority")
    pair = TRUSTED.issue("me", uris=[SPIFFE])
    (over_tls.folder / "tls.crt").write_bytes(FOREIGN.issue("daemon", host="127.0.0.1").certificate)  # not a pair
    await asyncio.sleep(1.5)
    async with presenting(over_tls, pair) as client:
        await client.generate_data_key("acme")
    new = over_tls.folder / "..new"
    renewed.issue("daemon", host="127.0.0.1").write(new)
    for name in ("tls.key", "tls.crt"):
        (over_tls.folder / f".{name}").symlink_to(new / name)
        (over_tls.folder / f".{name}").replace(over_tls.folder / name)
    trusting = over_tls.folder / "new-ca.crt"
    trusting.write_bytes(renewed.pem)
    chain, key = pair.write(over_tls.folder / "client")

    async def served() -> bool:
        async with AsyncKmsClient(
            over_tls.address, timeout=5, tls_ca_file=trusting, tls_cert_file=chain, tls_key_file=key
        ) as client:
            try:
                await client.generate_data_key("acme")
            except Unavailable:
                return False
            return True

    await eventually(served)


async def test_a_new_authority_ends_what_the_old_one_signed(over_tls: OverTls) -> None:
    """After client-ca-file was replaced, a certificate of the former authority opens no connection."""
    async with presenting(over_tls, TRUSTED.issue("me", uris=[SPIFFE])) as client:
        await client.generate_data_key("acme")
    ours = over_tls.folder / "mine.crt"
    shutil.copy(over_tls.folder / "ca.crt", ours)
    (over_tls.folder / "ca.crt").write_bytes(FOREIGN.pem)
    chain, key = TRUSTED.issue("me", uris=[SPIFFE]).write(over_tls.folder / "client2")

    async def refused() -> bool:
        async with AsyncKmsClient(
            over_tls.address, timeout=5, tls_ca_file=ours, tls_cert_file=chain, tls_key_file=key
        ) as client:
            try:
                await client.generate_data_key("acme")
            except Unavailable:
                return True
            return False

    await eventually(refused)


async def test_a_connection_ends_so_that_its_certificate_is_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an age of a second instead of an hour, a caller whose authority was withdrawn is soon refused."""
    ages = dict(rpc_server.AT_MOST_AN_HOUR)
    age, grace = ages["grpc.max_connection_age_ms"], ages["grpc.max_connection_age_grace_ms"]
    assert age * 11 // 10 + grace <= 3_600_000  # gRPC adds up to a tenth to the age
    monkeypatch.setattr(rpc_server, "AT_MOST_AN_HOUR", [(name, 1000) for name in ages])
    settings = tls_settings(tmp_path / "tls", TRUSTED.issue("daemon", host="127.0.0.1"))
    ours = tmp_path / "trusted.crt"
    shutil.copy(tmp_path / "tls" / "ca.crt", ours)
    chain, key = TRUSTED.issue("me", uris=[SPIFFE]).write(tmp_path / "client")
    values = {setting.split("=")[0].translate(str.maketrans(".-", "__")): setting.split("=")[1] for setting in settings}
    listen = f"unix:{tmp_path}/kms.sock;identity=a,127.0.0.1:0"
    async with (
        running(tmp_path / "data", kms_server_listen=listen, **values) as daemon,
        AsyncKmsClient(
            daemon.addresses[1],
            timeout=5,
            tls_ca_file=ours,
            tls_cert_file=chain,
            tls_key_file=key,
            wait_for_ready=False,
        ) as client,
    ):
        await client.generate_data_key("acme")
        await asyncio.to_thread((tmp_path / "tls" / "ca.crt").write_bytes, FOREIGN.pem)

        async def refused() -> bool:
            try:
                await client.generate_data_key("acme")
            except Unavailable:
                return True
            return False

        await eventually(refused)


def tls_settings(folder: Path, pair: Pair, authority: bytes = TRUSTED.pem) -> Sequence[str]:
    chain, key = pair.write(folder)
    (folder / "ca.crt").write_bytes(authority)
    return (
        f"kms.server.tls.cert-file={chain}",
        f"kms.server.tls.key-file={key}",
        f"kms.server.tls.client-ca-file={folder / 'ca.crt'}",
    )


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("key that others read", "is open to others"),
        ("key that a group writes", "is open to others"),
        ("foreign key", "is not the key of"),
        ("expired", "expired at"),
        ("no certificate", "holds no certificate"),
        ("no key", "holds no private key"),
        ("no authority", "holds no certificate"),
        ("absent", "cannot be read"),
        ("incomplete", "mutual TLS is incomplete"),
    ],
)
async def test_refused_tls_files(tmp_path: Path, case: str, text: str) -> None:
    """The start is refused with what to fix, be the address one that others reach or not."""
    end = timedelta(minutes=-1) if case == "expired" else timedelta(hours=1)
    settings = tls_settings(tmp_path, TRUSTED.issue("daemon", host="127.0.0.1", end=end))
    match case:
        case "key that others read":
            (tmp_path / "tls.key").chmod(0o644)
        case "key that a group writes":
            (tmp_path / "tls.key").chmod(0o660)
        case "foreign key":
            (tmp_path / "tls.key").write_bytes(TRUSTED.issue("other").key)
        case "no certificate":
            (tmp_path / "tls.crt").write_text("none")
        case "no key":
            (tmp_path / "tls.key").write_text("none")
        case "no authority":
            (tmp_path / "ca.crt").write_text("none")
        case "absent":
            (tmp_path / "tls.key").unlink()
        case "incomplete":
            settings = settings[:2]
    assert text in await refused_start(tmp_path, *settings)


def test_with_mutual_tls_other_machines_may_reach_the_daemon(tmp_path: Path) -> None:
    """0.0.0.0 is taken with mutual TLS, also where identity is required, and no certificate is no way in."""
    settings = tls_settings(tmp_path, TRUSTED.issue("daemon", host="127.0.0.1"))
    arguments = [word for setting in (*settings, "kms.server.require-identity=true") for word in ("--set", setting)]
    with spawned("--data-dir", str(tmp_path / "data"), "--listen", "0.0.0.0:0", *arguments) as process:
        process.wait_for("serving")
        address = f"127.0.0.1:{process.address.rpartition(':')[2]}"
        chain, key = TRUSTED.issue("me").write(tmp_path / "client")
        with KmsClient(address, tls_ca_file=tmp_path / "ca.crt", tls_cert_file=chain, tls_key_file=key) as client:
            assert 32 == len(client.generate_data_key("acme").plaintext)
        assert grpc.StatusCode.UNAVAILABLE == status_of(address)
