"""A certificate authority for tests: issues certificates as SPIRE and cert-manager do, and bad ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def subject(name: str) -> x509.Name:
    """Return a subject with a common name, or without any attribute."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both into a folder, the key for its owner only."""
        folder.mkdir(parents=True, exist_ok=True)
        chain, key = folder / "tls.crt", folder / "tls.key"
        chain.write_bytes(self.certificate)
        key.touch(0o600)
        key.write_bytes(self.key)
        return chain, key


@dataclass
class Authority:
    """Signs certificates with a key of its own."""

    name: str = "test authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self._certificate = (
            self._builder(subject(self.name), self.key, timedelta(hours=-1), timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        return self._certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        name: str = "",
        *,
        uris: Sequence[str] = (),
        host: str | Sequence[str] | None = None,
        begin: timedelta = timedelta(hours=-1),
        end: timedelta = timedelta(hours=1),
        usage: x509.ObjectIdentifier | None = None,
    ) -> Pair:
        """Return a certificate with its key. With `host`, an IP address or names, it is a server's."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        if host is not None:
            names += map(_name_of, [host] if isinstance(host, str) else host)
        builder = self._builder(subject(name), key, begin, end)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not name)
        used = usage or (ExtendedKeyUsageOID.CLIENT_AUTH if host is None else ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.ExtendedKeyUsage([used]), critical=False)
        return Pair(
            builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, begin: timedelta, end: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(subject(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begin)
            .not_valid_after(now + end)
        )


def _name_of(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
