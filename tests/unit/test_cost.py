"""What KMS costs: the calculator of `betrace-kms cost`."""

import json
from decimal import Decimal

import pytest
from betrace_kms_client.cli import main
from betrace_kms_client.cli.cost import Bill, bill
from click.testing import CliRunner

PER_10K, PER_KEY = Decimal("0.03"), Decimal("1.00")


def run(*arguments: str) -> tuple[int, str]:
    """Return the exit code and all the output of `betrace-kms cost`."""
    done = CliRunner().invoke(main, ["cost", *arguments])
    return done.exit_code, done.output


def test_a_bill_is_that_of_the_setup_guide() -> None:
    """1,000 requests/s of which the cache answers 80 %, as in AWS_KMS_SETUP.md, appendix A."""
    expected = Bill(kms_calls=525_600_000, calls_dollars=Decimal("1576.80"), keys_dollars=Decimal("1.00"))
    found = bill(1000 * (1 - Decimal("0.80")), 1, PER_10K, PER_KEY)
    assert (expected, Decimal("1577.80")) == (found, found.total_dollars)


@pytest.mark.parametrize(
    ("rate", "keys", "calls", "dollars"),
    [
        ("0", 0, 0, "0.00"),
        ("0", 3, 0, "3.00"),
        ("0.1", 1, 262_800, "1.79"),  # $0.7884
        ("0.0634196", 1, 166_667, "1.50"),  # 166,666.7 calls, $0.500001
        ("1000000000", 1, 2_628_000_000_000_000, "7884000001.00"),
    ],
)
def test_a_bill_is_exact_to_the_cent(rate: str, keys: int, calls: int, dollars: str) -> None:
    """Calls are whole; each item is rounded to the nearest cent, and their sum is not rounded again."""
    found = bill(Decimal(rate), keys, PER_10K, PER_KEY)
    assert (calls, Decimal(dollars)) == (found.kms_calls, found.total_dollars)


def test_half_a_cent_is_rounded_up() -> None:
    """As in a bill, and not to the even neighbour."""
    assert Decimal("0.13") == bill(Decimal(0), 1, PER_10K, Decimal("0.125")).keys_dollars


def test_the_command_shows_both_bills_and_what_is_saved() -> None:
    """A table to read."""
    assert run("--rps", "1000", "--hit-rate", "0.8") == (
        0,
        """\
1,000 requests/s, hit rate 0.8; a month of 730 hours

                   with cache    without cache
---------------  ------------  ---------------
KMS calls         525,600,000    2,628,000,000
for calls           $1,576.80        $7,884.00
for master keys         $1.00            $1.00
total               $1,577.80        $7,885.00

The cache saves $6,307.20 a month (79.9 %).
The free tier of 20,000 requests a month is not subtracted.
""",
    )


def test_json_has_the_same_figures_and_prices_may_be_given() -> None:
    """Numbers, not text; other keys and prices than those of one key in us-east-1."""
    prices = ("--keys", "2", "--price-per-10k", "0.05", "--key-price", "1.5", "--json")
    code, output = run("--rps", "10", "--hit-rate", "0.5", *prices)
    assert (code, json.loads(output)) == (
        0,
        {
            "requestsPerSecond": 10.0,
            "hitRate": 0.5,
            "withCache": {"kmsCalls": 13_140_000, "callsDollars": 65.7, "keysDollars": 3.0, "totalDollars": 68.7},
            "withoutCache": {"kmsCalls": 26_280_000, "callsDollars": 131.4, "keysDollars": 3.0, "totalDollars": 134.4},
            "savedDollars": 65.7,
        },
    )


def test_nothing_costs_nothing() -> None:
    """No share of a total of zero."""
    code, output = run("--rps", "0", "--hit-rate", "0", "--keys", "0")
    assert (code, "The cache saves $0.00 a month.\n" in output) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--rps 1000", "give --rps and --hit-rate, or --live"),
        ("--hit-rate 0.8", "give --rps and --hit-rate, or --live"),
        ("--rps -1 --hit-rate 0.8", "-1 is not from 0 to 1,000,000,000"),
        ("--rps 1000 --hit-rate 80", "80 is not from 0 to 1"),
        ("--rps 1000 --hit-rate -0.1", "-0.1 is not from 0 to 1"),
        ("--rps 1000 --hit-rate 80%", "'80%' is not a number"),
        ("--rps nan --hit-rate 0.8", "nan is not from 0 to"),
        ("--rps inf --hit-rate 0.8", "inf is not from 0 to"),
        ("--rps 1 --hit-rate 0 --price-per-10k -1", "-1 is not from 0 to 1,000"),
        ("--rps 1 --hit-rate 0 --keys -1", "-1 is not in the range"),
    ],
)
def test_a_number_out_of_range_is_refused(arguments: str, text: str) -> None:
    """Exit code 2, and the sentence names the limits."""
    code, output = run(*arguments.split())
    assert (code, text in output, output) == (2, True, output)
