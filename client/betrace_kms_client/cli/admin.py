"""validate, status, invalidate: what an operator asks of the daemon's admin socket.

GetStatus answers with JSON that grows with every version. The tables here show what this version knows and pass over
what is missing or new; --json hands on everything.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Decimal
from typing import Any

import click
import orjson
from betrace.kms.v1 import admin_pb2 as pb

from betrace_kms_client.cli.options import (
    CALL_FAILED,
    admin_options,
    administering,
    as_json,
    report_option,
    table,
    tenant_option,
)
from betrace_kms_client.cli.outputs import write

ANSWER_IS_NO = 1
_LABEL = 14
_NONE = "-"


@click.command(
    epilog="""\b
Examples:
  betrace-kms validate
  betrace-kms validate --admin-addr unix:/var/lib/betrace-kms/admin.sock
  betrace-kms validate --production
  betrace-kms validate --json | jq -r .overall
"""
)
@click.option("--production", is_flag=True, help="Fail on what must not be so in production, too.")
@report_option
@admin_options
def validate(production: bool, as_json_: bool, admin_addr: str, timeout: float) -> None:
    """Try everything that the daemon needs of KMS and of its store; exits with 1 unless all of it passes."""
    with administering(admin_addr) as admin:
        answer = admin.Validate(pb.ValidateRequest(production=production), timeout=timeout)
    if as_json_:
        write(as_json(_validation(answer)), None)
    else:
        rows = [(each.name, _verdict(each.passed), _latency(each), each.message) for each in answer.tests]
        click.echo(table(("test", "verdict", "ms", "message"), rows, "llrl", width=_width()))
        click.echo(f"\noverall: {_verdict(answer.passed)}")
        for sentence in answer.recommendations:
            click.echo(textwrap.fill(sentence, _width() or sys.maxsize, initial_indent="- ", subsequent_indent="  "))
    if not answer.passed:
        raise SystemExit(ANSWER_IS_NO)


def _validation(answer: pb.ValidateResponse) -> Mapping[str, Any]:
    return {
        "provider": answer.provider,
        "overall": "PASS" if answer.passed else "FAIL",
        "tests": [
            {"name": test.name, "passed": test.passed, "latencyMs": test.latency_ms, "message": test.message}
            for test in answer.tests
        ],
        "recommendations": list(answer.recommendations),
    }


def _latency(test: pb.ValidationTest) -> str:
    return f"{test.latency_ms:,.1f}" if test.latency_ms else _NONE  # 0 stands for a test that did not run


def _verdict(passed: bool) -> str:
    return click.style("PASS", fg="green") if passed else click.style("FAIL", fg="red", bold=True)


@click.command(
    epilog="""\b
Examples:
  betrace-kms status
  watch -n 5 betrace-kms status
  betrace-kms status --json | jq .seconds_until_degraded
"""
)
@report_option
@admin_options
def status(as_json_: bool, admin_addr: str, timeout: float) -> None:
    """Report the daemon's state: KMS, caches, calls, rotation, audit, cost; exits with 1 unless it serves."""
    found = read_status(admin_addr, timeout)
    if as_json_:
        write(as_json(found), None)
    else:
        click.echo("\n\n".join(_report(found)))
    if not found.get("serving"):
        raise SystemExit(ANSWER_IS_NO)


def read_status(admin_addr: str, timeout: float) -> dict[str, Any]:
    """Return the daemon's status; end the command if there is none."""
    with administering(admin_addr) as admin:
        text = admin.GetStatus(pb.GetStatusRequest(), timeout=timeout).json
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        click.echo("betrace-kms: the daemon's status is not a JSON object: is that a betrace-kms daemon?", err=True)
        raise SystemExit(CALL_FAILED)
    return found


@click.command(
    epilog="""\b
Examples:
  betrace-kms invalidate --tenant acme
"""
)
@tenant_option
@admin_options
def invalidate(tenant_id: str, admin_addr: str, timeout: float) -> None:
    """Drop everything that the daemon's caches hold for a tenant; its next call asks KMS again."""
    with administering(admin_addr) as admin:
        answer = admin.InvalidateTenant(pb.InvalidateTenantRequest(tenant_id=tenant_id), timeout=timeout)
    click.echo(f"dropped {answer.entries:,} cache {'entry' if answer.entries == 1 else 'entries'}")


def _report(found: Mapping[str, Any]) -> Iterator[str]:
    yield "\n".join(_line(label, text) for label, text in _head(found) if text)
    if caches := [_cache(cache) for cache in found.get("caches") or ()]:
        headers = ("key type", "entries/max", "hits", "misses", "hit rate", "evictions")
        yield table(headers, caches, "lrrrrl", width=_width())
    for name, header in (("kms_calls", "KMS call"), ("rpcs", "RPC")):
        counts = [
            (operation, outcome, _count(number))
            for operation, outcomes in sorted((found.get(name) or {}).items())
            for outcome, number in sorted(outcomes.items())
        ]
        if counts:
            yield table((header, "outcome", "count"), counts, "llr")


def _head(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    kms, store = found.get("kms") or {}, found.get("store") or {}
    yield "provider", found.get("provider") or ""
    yield "version", found.get("version") or ""
    yield "uptime", _duration(found.get("uptime_seconds"))
    yield "serving", click.style("yes", fg="green") if found.get("serving") else click.style("NO", fg="red", bold=True)
    yield "callers", _callers(found.get("access") or {})
    yield "lock", _lock(found.get("lock") or {})
    yield "shredding", _shredding(found.get("shredding") or {})
    yield "process", _process(found.get("process") or {})
    yield "master key", kms.get("master_key") or ""
    yield "former keys", _former(found.get("former_master_keys") or {})
    yield "region", kms.get("region") or ""
    yield "KMS", _kms(kms)
    yield "breakers", ", ".join(_breaker(region, state) for region, state in (kms.get("breakers") or {}).items())
    yield "degraded in", _duration(found.get("seconds_until_degraded"))
    yield "store", _with_error(store.get("kind") or "", store.get("error"))
    yield "rotation", _rotation(found.get("rotation") or {})
    yield "audit", _audit(found["audit"]) if "audit" in found else ""
    yield "audit head", (found.get("audit") or {}).get("head") or ""
    yield "cost", _cost(found.get("cost") or {})


def _callers(access: Mapping[str, Any]) -> str:
    if "unauthenticated" not in access:
        return ""
    if not access["unauthenticated"]:
        return "authenticated"
    return click.style("NOT AUTHENTICATED", fg="red", bold=True) + f" at {', '.join(access['unauthenticated'])}"


def _process(process: Mapping[str, Any]) -> str:
    notes = [
        "runs as root: give it a user of its own" if process.get("root") else "",
        "kms.process.dumpable is set: others of its user can read its memory" if process.get("dumpable") else "",
    ]
    return click.style("; ".join(note for note in notes if note), fg="red") if any(notes) else ""


def _lock(lock: Mapping[str, Any]) -> str:
    if not lock:
        return ""
    since = datetime.fromtimestamp(lock.get("since") or 0, UTC)
    return click.style(f"LOCKED since {since:%Y-%m-%d %H:%M:%S} UTC: {lock.get('reason') or ''}", fg="red", bold=True)


def _former(former: Mapping[str, Any]) -> str:
    parts = [f"{_count(count)} {kind} left" for kind, count in (former.get("left") or {}).items() if count]
    left = [click.style(", ".join(parts), fg="red")] if parts else []
    return "; ".join([*(former.get("configured") or ()), *left])


def _shredding(shredding: Mapping[str, Any]) -> str:
    parts = [f"{_count(shredding[name])} {name}" for name in ("pending", "failing") if shredding.get(name)]
    return click.style(", ".join(parts), fg="red", bold=True) if parts else ""


def _kms(kms: Mapping[str, Any]) -> str:
    if "usable" not in kms:
        return ""
    state = click.style("usable", fg="green") if kms["usable"] else click.style("NOT USABLE", fg="red", bold=True)
    parts = [_with_error(state, kms.get("error"))]
    if kms.get("latency_ms") is not None:
        parts.append(f"{kms['latency_ms']:,.1f} ms")
    if kms.get("checked_seconds_ago") is not None:
        parts.append(f"checked {_duration(kms['checked_seconds_ago'])} ago")
    return ", ".join(parts)


def _breaker(region: str, state: str) -> str:
    text = state.replace("_", " ")
    return f"{region} {text if state == 'closed' else click.style(text, fg='red')}"


def _rotation(rotation: Mapping[str, Any]) -> str:
    if "last_run" not in rotation:
        return ""
    at = rotation["last_run"]
    run = "no good run yet" if at is None else f"last good run {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{run}, failures {_count(rotation.get('failures'))}"


def _cache(cache: Mapping[str, Any]) -> Sequence[str]:
    counted = (cache.get("evictions") or {}).items()
    evictions = [f"{_count(number)} {reason.replace('_', ' ')}" for reason, number in counted if number]
    return (
        cache.get("key_type") or _NONE,
        f"{_count(cache.get('size'))}/{_count(cache.get('max_size'))}",
        _count(cache.get("hits")),
        _count(cache.get("misses")),
        percent(cache.get("hit_rate")),
        (", " if _width() is None else "\n").join(evictions) or _NONE,
    )


def _audit(audit: Mapping[str, Any] | None) -> str:
    if audit is None:
        return "off"
    parts = [audit.get("file") or "", "required" if audit.get("required") else ""]
    parts += [
        f"{name} {_count(audit[name])}" for name in ("sequence", "written", "lost") if audit.get(name) is not None
    ]
    return _with_error(", ".join(part for part in parts if part), audit.get("error"))


def _cost(cost: Mapping[str, Any]) -> str:
    with_cache, without = cost.get("with_cache_dollars"), cost.get("without_cache_dollars")
    if with_cache is None or without is None:
        return ""
    return (
        f"${with_cache:,.2f} a month with cache ({_count(cost.get('kms_calls_per_month'))} KMS calls), "
        f"${without:,.2f} without, at {cost.get('requests_per_second') or 0:,.1f} requests/s"
    )


def _with_error(text: str, error: str | None) -> str:
    return f"{text}: {click.style(error, fg='red')}" if error else text


def percent(rate: float | Decimal | None) -> str:
    """Return a rate as per cent, rounded down: 100.0 % means all."""
    if rate is None:
        return _NONE
    return f"{Decimal(str(rate)).quantize(Decimal('0.001'), ROUND_DOWN):.1%}".replace("%", " %")


def _count(number: float | None) -> str:
    return _NONE if number is None else f"{number:,.0f}"


def _duration(seconds: float | None) -> str:
    """Return a time in its two largest units, e.g. "54 min" or "2 h 5 min"; "" if there is none."""
    if seconds is None:
        return ""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400:,} d {whole % 86400 // 3600} h"


def _line(label: str, text: str) -> str:
    """Return `label  text`, wrapped between words; a word that is too long starts a line of its own, at the left."""
    width = _width()
    plain, start = click.unstyle(text), label.ljust(_LABEL)
    if width is None or _LABEL + len(plain) <= width:
        return start + text
    indent = _LABEL
    if _LABEL + max(len(word) for word in plain.split()) > width:
        start, indent = f"{label}\n  ", 2
    lines = textwrap.wrap(text, width - indent, break_long_words=False, break_on_hyphens=False)
    return start + ("\n" + " " * indent).join(lines)


def _width() -> int | None:
    """Return how wide the terminal is, 40 or more; None where stdout is no terminal, and lines stay whole."""
    return max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
