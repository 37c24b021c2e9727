"""The verb `betrace-kms audit`: checks an audit trail, anywhere that its files are."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click
import orjson

from betrace_kms_server.audit.chain import ChainVerifier, Finding

NOT_INTACT = 1
UNREADABLE = 2


@click.group()
def audit() -> None:
    """Check the audit trail that kms.audit.file names."""


@audit.command(
    epilog="""\b
Examples:
  betrace-kms audit verify audit.log
  betrace-kms audit verify $(ls -tr /var/log/betrace-kms/audit.log*)    # oldest first
  zcat audit.log.2.gz | betrace-kms audit verify - audit.log.1 audit.log
  betrace-kms audit verify --head 4be1...09 audit.log                   # finds lines cut off at the end, too

Exit codes: 0 intact, 1 something was found, 2 a file cannot be read.
"""
)
@click.argument(
    "files",
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True),
    nargs=-1,
    required=True,
    metavar="FILE...",
)
@click.option(
    "--head",
    metavar="HEX",
    help="A hash noted earlier, from this command or audit-head.json: the line that has it must be there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line; the last one is the summary.")
def verify(files: Sequence[str], head: str | None, as_json: bool) -> None:
    """Find every line that was changed, removed, moved or repeated. Give the files of a trail oldest first."""
    if head is not None and (len(head) != 64 or set(head) - set("0123456789abcdef")):
        raise click.BadParameter("give 64 lower-case hexadecimal digits", param_hint="--head")
    verifier = ChainVerifier(head)
    found = 0
    for finding in _findings(verifier, files):
        found += 1
        text = orjson.dumps(finding) if as_json else f"{finding.file}:{finding.line}: {finding.problem}"
        click.echo(text)
    click.echo(_json_summary(verifier, found) if as_json else _summary(verifier, found))
    if found or not verifier.lines:
        raise SystemExit(NOT_INTACT)


def _findings(verifier: ChainVerifier, files: Sequence[str]) -> Iterator[Finding]:
    for name in files:
        try:
            with click.open_file(name, "rb") as file:
                yield from verifier.read(name, file)
        except OSError as error:
            click.echo(f"betrace-kms: {name} cannot be read: {error.strerror}", err=True)
            raise SystemExit(UNREADABLE) from None
    yield from verifier.finish()


def _summary(verifier: ChainVerifier, found: int) -> str:
    span = f", seq {verifier.first} to {verifier.last.seq}, head {verifier.last.hash}" if verifier.last else ""
    verdict = f"{found:,} finding{'s' if found > 1 else ''}" if found else "intact" if verifier.lines else "no lines"
    return f"audit: {verifier.lines:,} line{'' if verifier.lines == 1 else 's'}{span}: {verdict}"


def _json_summary(verifier: ChainVerifier, found: int) -> bytes:
    return orjson.dumps(
        {
            "lines": verifier.lines,
            "firstSeq": verifier.first,
            "head": asdict(verifier.last) if verifier.last else None,
            "findings": found,
            "intact": not found and verifier.lines > 0,
        }
    )
