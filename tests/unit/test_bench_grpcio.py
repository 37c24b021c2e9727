"""`make bench-grpcio` changes nothing but grpcio, and says whether a release may be allowed."""

from bench.environments import pinned_version, without_grpcio
from bench.grpcio import verdict
from bench.records import Case, Record
from tests.install import ROOT, pinned, pins


def test_only_grpcio_differs() -> None:
    """What an environment installs first is all that the server's pins have, but not grpcio, and with hashes."""
    text = (ROOT / "requirements/server.txt").read_text("utf-8")
    left = without_grpcio(text)
    assert {("grpcio", pinned_version())} == pinned("server.txt") - pins(left)
    assert set() == pins(left) - pinned("server.txt")
    assert text.count("--hash=") - left.count("--hash=") == text.split("\ngrpcio==")[1].split("\n    # ")[0].count(
        "--hash="
    )


def test_verdict() -> None:
    """A release within 5 % of the first is said to be so."""

    def record(version: str, ratio: float) -> Record:
        return Record(Case("SignSpan", variant=f"grpcio {version}, Python 3.11.7, uvloop"), "ours", 3, ratio=ratio)

    made = [record("1.78.2", 1), record("1.85.3", 1.24), record("1.90.0", 1.05)]
    assert [
        "grpcio 1.85.3 needs 1.24 times the CPU: more than 5 % above 1.78.2",
        "grpcio 1.90.0 needs 1.05 times the CPU: within 5 % of 1.78.2",
    ] == verdict(["1.78.2", "1.85.3", "1.90.0"], made).splitlines()
