"""A real PostgreSQL server on loopback and on a unix socket, of Debian's package or of `make postgresql`."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

_ROOT = Path(__file__).parents[1]
_NOBODY = 65534
_USER = _NOBODY if os.geteuid() == 0 else None
"""PostgreSQL refuses to run as root."""
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "listen_addresses": "127.0.0.1",
    "log_min_messages": "fatal",
}


def binaries() -> Path | None:
    """Return the folder of initdb and postgres, or None."""
    found = [*_ROOT.glob(".tools/postgresql/lib/postgresql/*/bin"), *Path("/usr/lib/postgresql").glob("*/bin")]
    if found:
        return found[-1]
    program = shutil.which("initdb")
    return Path(program).parent if program else None


@dataclass
class PostgresServer:
    """A server whose superuser is `postgres`, trusted on the socket; over TCP passwords are asked for."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def admin(self) -> str:
        """Conninfo of the superuser."""
        return f"host={self.folder} port={self.port} user=postgres"

    def execute(self, statement: str, dbname: str = "postgres") -> None:
        """Run a statement as the superuser."""
        with psycopg.connect(self.admin, dbname=dbname, autocommit=True) as connection:
            connection.execute(statement.encode())

    def new_database(self, template: str = "template0") -> str:
        """Make a database, a copy of another or an empty one, and return its name."""
        name = f"db_{secrets.token_hex(8)}"
        with psycopg.connect(self.admin, dbname="postgres", autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def local(self, dbname: str, user: str = "postgres") -> str:
        """Return conninfo over the unix socket."""
        return f"host={self.folder} port={self.port} user={user} dbname={dbname}"

    def tcp(self, dbname: str, user: str, port: int = 0) -> str:
        """Return conninfo over loopback, where a password is asked for."""
        return f"host=127.0.0.1 port={port or self.port} user={user} dbname={dbname}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = binaries()
        assert program
        given = {**_SETTINGS, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        self.process = subprocess.Popen(
            [program / "postgres", "-D", self.folder / "data", *options],
            user=_USER,
            group=_USER,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(400):
            try:
                psycopg.connect(self.admin, dbname="postgres", connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        raise RuntimeError("PostgreSQL does not start")

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it, by default without a checkpoint: what was committed is in its log."""
        self.process.send_signal(how)
        self.process.wait()


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server with an empty cluster in a folder of its own."""
    program = binaries()
    if program is None:
        raise RuntimeError("There is no PostgreSQL: `make postgresql` unpacks Debian's")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/var/tmp" if Path("/var/tmp").is_dir() else None))
    try:
        if os.geteuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
        folder.chmod(0o755)
        subprocess.run(
            [
                *(program / "initdb", "-D", folder / "data", "-U", "postgres", "--no-sync", "--no-instructions"),
                *("--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            user=_USER,
            group=_USER,
        )
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        server = PostgresServer(folder, port, None)  # type: ignore[arg-type]
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
