"""cost: what KMS costs with the cache and without it.

Prices of us-east-1, from https://aws.amazon.com/kms/pricing/: $0.03 for 10,000 requests with a symmetric key, and $1 a
month for a key. Sums are exact (Decimal); each item is rounded to cents, as in a bill. The free tier is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

import click

from betrace_kms_client.cli.admin import percent, read_status
from betrace_kms_client.cli.options import admin_options, as_json, report_option, table
from betrace_kms_client.cli.outputs import write

HOURS_PER_MONTH = 730
_CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Bill:
    """A month of KMS: calls, and dollars for them and for the master keys."""

    kms_calls: int
    calls_dollars: Decimal
    keys_dollars: Decimal

    @property
    def total_dollars(self) -> Decimal:
        """Calls and keys together."""
        return self.calls_dollars + self.keys_dollars


def bill(calls_per_second: Decimal, keys: int, price_per_10k: Decimal, key_price: Decimal) -> Bill:
    """Return what a month of so many KMS calls costs, to the cent."""
    calls = (calls_per_second * 3600 * HOURS_PER_MONTH).to_integral_value(ROUND_HALF_UP)
    return Bill(int(calls), _cents(calls * price_per_10k / 10_000), _cents(keys * key_price))


def _cents(dollars: Decimal) -> Decimal:
    return dollars.quantize(_CENT, ROUND_HALF_UP)


def number_up_to(limit: int) -> Callable[[click.Context, click.Parameter, str | None], Decimal | None]:
    """Return a callback that reads an exact number from 0 to a limit."""

    def parse(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Decimal | None:
        if value is None:
            return None
        try:
            number = Decimal(value)
        except InvalidOperation:
            raise click.BadParameter(f"{value!r} is not a number") from None
        if not number.is_finite() or not 0 <= number <= limit:
            raise click.BadParameter(f"{value} is not from 0 to {limit:,}")
        return number

    return parse


@click.command(
    epilog="""\b
Examples:
  betrace-kms cost --rps 1000 --hit-rate 0.8
  betrace-kms cost --live                      # as the daemon works now
  betrace-kms cost --live --hit-rate 0.99      # and if more came from the cache

\b
Prices: us-east-1, https://aws.amazon.com/kms/pricing/. The free tier of 20,000
requests a month is not subtracted.
"""
)
@click.option("--rps", metavar="NUMBER", callback=number_up_to(10**9), help="Requests per second that need a key.")
@click.option(
    "--hit-rate", metavar="NUMBER", callback=number_up_to(1), help="Share of them that the cache answers, 0 to 1."
)
@click.option("--live", is_flag=True, help="Take from the daemon's status what of the two is not given.")
@click.option(
    "--keys",
    type=click.IntRange(0, 10**6),
    default=1,
    show_default=True,
    help="Master keys; count a key again for each of its first two rotations.",
)
@click.option(
    "--price-per-10k",
    metavar="NUMBER",
    callback=number_up_to(1000),
    default="0.03",
    show_default=True,
    help="Dollars for 10,000 requests.",
)
@click.option(
    "--key-price",
    metavar="NUMBER",
    callback=number_up_to(1000),
    default="1.00",
    show_default=True,
    help="Dollars a month for a key.",
)
@report_option
@admin_options
def cost(
    rps: Decimal | None,
    hit_rate: Decimal | None,
    live: bool,
    keys: int,
    price_per_10k: Decimal,
    key_price: Decimal,
    as_json_: bool,
    admin_addr: str,
    timeout: float,
) -> None:
    """Report what KMS costs in a month of 730 hours, with the cache and without it."""
    if live:
        measured = read_status(admin_addr, timeout).get("cost") or {}
        rps = _measured(measured, "requests_per_second", "--rps") if rps is None else rps
        hit_rate = _measured(measured, "hit_rate", "--hit-rate") if hit_rate is None else hit_rate
    if rps is None or hit_rate is None:
        raise click.UsageError("give --rps and --hit-rate, or --live to take them from the daemon")
    cached = bill(rps * (1 - hit_rate), keys, price_per_10k, key_price)
    uncached = bill(rps, keys, price_per_10k, key_price)
    saved = uncached.total_dollars - cached.total_dollars
    if as_json_:
        shown = {
            "requestsPerSecond": float(rps),
            "hitRate": float(hit_rate),
            "withCache": _as_json(cached),
            "withoutCache": _as_json(uncached),
            "savedDollars": float(saved),
        }
        write(as_json(shown), None)
        return
    click.echo(f"{float(rps):,.10g} requests/s, hit rate {float(hit_rate):.10g}; a month of {HOURS_PER_MONTH} hours\n")
    click.echo(table(("", "with cache", "without cache"), _rows(cached, uncached), "lrr"))
    share = f" ({percent(saved / uncached.total_dollars)})" if uncached.total_dollars else ""
    click.echo(f"\nThe cache saves ${saved:,} a month{share}.")
    click.echo("The free tier of 20,000 requests a month is not subtracted.")


def _measured(measured: Mapping[str, Any], name: str, option: str) -> Decimal:
    if measured.get(name) is None:
        raise click.UsageError(f"the daemon has no {name.replace('_', ' ')} yet: send it calls, or give {option}")
    return Decimal(str(measured[name]))


def _rows(cached: Bill, uncached: Bill) -> list[tuple[str, str, str]]:
    return [
        ("KMS calls", f"{cached.kms_calls:,}", f"{uncached.kms_calls:,}"),
        ("for calls", f"${cached.calls_dollars:,}", f"${uncached.calls_dollars:,}"),
        ("for master keys", f"${cached.keys_dollars:,}", f"${uncached.keys_dollars:,}"),
        ("total", f"${cached.total_dollars:,}", f"${uncached.total_dollars:,}"),
    ]


def _as_json(of: Bill) -> dict[str, Any]:
    return {
        "kmsCalls": of.kms_calls,
        "callsDollars": float(of.calls_dollars),
        "keysDollars": float(of.keys_dollars),
        "totalDollars": float(of.total_dollars),
    }
