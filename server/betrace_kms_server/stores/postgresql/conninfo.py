"""Where the database is, as libpq takes it: `kms.store.dsn`, and for what that leaves out the PG* variables."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.sockets import is_loopback
from betrace_kms_server.host.trusted_files import Untrusted, read_trusted

_GROUP_READS = 0o040
_DEFAULTS = {
    "application_name": "betrace-kms",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}


def complete(dsn: str | None, environ: Mapping[str, str] | None = None) -> str:
    """Return conninfo with our defaults. Raises StartRefused for one that is malformed, or that trusts the network.

    Wrapped keys are no secret, but who answers in the place of the server decides which keys are used: so a server
    that is not on this machine must prove its name by a certificate (`sslmode=verify-full`). Of several hosts the one
    that takes writes is chosen.
    """
    environ = os.environ if environ is None else environ
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(dsn or "").items() if value is not None}
    except psycopg.ProgrammingError as cause:
        raise StartRefused(
            "kms.store.dsn is malformed: write host=HOST dbname=NAME user=USER sslmode=verify-full, or"
            " postgresql://USER@HOST/NAME?sslmode=verify-full"
        ) from cause
    if given.get("password"):
        raise StartRefused("kms.store.dsn holds a password: use kms.store.password-file, because settings are shown")
    known = given.get("hostaddr") or given.get("host") or environ.get("PGHOSTADDR") or environ.get("PGHOST") or ""
    hosts = known.split(",")
    elsewhere = "service" in given or "PGSERVICE" in environ or not all(map(_is_here, hosts))
    if elsewhere and (given.get("sslmode") or environ.get("PGSSLMODE")) != "verify-full":
        raise StartRefused(
            "kms.store.dsn must have sslmode=verify-full: the server is not on this machine; sslrootcert names an"
            " authority that is not the system's"
        )
    defaults = _DEFAULTS | ({"target_session_attrs": "read-write"} if len(hosts) > 1 else {})
    return make_conninfo("", **{**defaults, **given})


def password_of(file: Path | None) -> Callable[[], str | None]:
    """Return what reads the password, anew for each connection. None leaves it to libpq: ~/.pgpass, PGPASSFILE."""

    def read() -> str | None:
        if file is None:
            return None
        try:
            content, _ = read_trusted(file, readers=_GROUP_READS, follow=True)
            return content.decode().rstrip("\r\n")
        except (Untrusted, UnicodeDecodeError) as cause:
            raise OSError(f"kms.store.password-file: {cause}") from cause

    return read


def _is_here(host: str) -> bool:
    return host in ("", "localhost") or host.startswith(("/", "@")) or is_loopback(host)
