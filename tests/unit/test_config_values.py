"""Odd values of settings: each is refused by name, none is taken for another value."""

import re

import pytest
from betrace_kms_server.config.sources import NAMES, Settings, Source, resolve
from betrace_kms_server.core.errors import StartRefused


def bounds(name: str) -> tuple[int, int] | None:
    found = {
        key: getattr(part, key)
        for part in Settings.model_fields[NAMES[name]].metadata
        for key in ("ge", "le")
        if hasattr(part, key)
    }
    return (found["ge"], found["le"]) if len(found) == 2 else None


NUMBERS = [name for name in NAMES if isinstance(resolve([])[0].model_dump()[NAMES[name]], int) and bounds(name)]
SWITCHES = [name for name in NAMES if Settings.model_fields[NAMES[name]].annotation is bool]
BESIDE = {"kms.audit.file": "-"}


def resolved(name: str, value: str) -> object:
    aws = {"betrace.kms.provider": "aws", "aws.kms.master-key-id": "arn:aws:kms:eu-west-1:123456789012:key/a"}
    return getattr(resolve([Source("test", {**BESIDE, **aws, name: value})])[0], NAMES[name])


def refused(name: str, value: str) -> None:
    with pytest.raises(StartRefused) as caught:
        resolved(name, value)
    assert re.fullmatch(rf"{re.escape(name)} \(from test\): \S.*", str(caught.value))


def test_every_number_has_bounds() -> None:
    """A number without an upper bound is a day of drain, or a cache that fills the memory."""
    numbers = [
        name for name, field in NAMES.items() if re.search(r"\bint\b", repr(Settings.model_fields[field].annotation))
    ]
    assert len(numbers) == 31
    assert [] == [name for name in numbers if bounds(name) is None]


@pytest.mark.parametrize("name", [*NUMBERS, "kms.cache.data-key-max-uses"])
def test_bounds_hold(name: str) -> None:
    """The least and the greatest value are taken, the next ones are not."""
    low, high = bounds(name) or (0, 0)
    assert (low, high) == (resolved(name, str(low)), resolved(name, f" {high} "))
    for value in (low - 1, high + 1, 10**9 * high, 2**63, 2**64, -1):
        refused(name, str(value))


@pytest.mark.parametrize(
    "value",
    "1e9 0x10 0o10 010 1_000 1,000 1.0 5. +5 nan inf -0x1 ٥ ² 5s 5% 1e400 ten true --5".split(" "),  # noqa: RUF001
)
def test_a_number_is_decimal_digits(value: str) -> None:
    """Python reads 1_000 and digits of other scripts, and people mean eight or sixteen by 010 and 0x10."""
    refused("kms.server.drain-seconds", value)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["yes", "no", "on", "off", "1", "0", "t", "y", "enabled", "true false"])
def test_a_switch_is_true_or_false(name: str, value: str) -> None:
    """What the documents do not say is not taken."""
    refused(name, value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("betrace.kms.provider", '"aws"', "is in quotes"),
        ("kms.data-dir", "'/srv/kms'", "is in quotes"),
        ("kms.data-dir", "/srv/kms # the volume", "is followed by a comment"),
        ("kms.audit.file", "/srv/audit\t#x", "is followed by a comment|control character"),
        ("kms.audit.file", "/srv/audit // x", "is followed by a comment"),
        ("kms.data-dir", "${HOME}/kms", "expressions are not read"),
        ("kms.data-dir", "/srv/\nkms", "line break"),
        ("kms.data-dir", "/srv/\udcff", "not UTF-8"),
        ("kms.data-dir", "/srv/\x1b[31m", "control character"),
    ],
)
def test_values_that_mean_something_else_are_refused(name: str, value: str, reason: str) -> None:
    """A path takes every character, so that quotes and comments would silently be part of it."""
    refused(name, value)
    with pytest.raises(StartRefused, match=reason):
        resolved(name, value)


@pytest.mark.parametrize("value", ["/srv/my kms", "/srv/a#b", "/srv/c;d", "/srv/http://x", "/srv/ü", "/srv/$x{"])
def test_paths_are_free(value: str) -> None:
    """What cannot be a comment or a quote is a path."""
    assert value == str(resolved("kms.audit.file", value))


@pytest.mark.parametrize("name", ["kms.server.listen", "kms.ops.listen"])
@pytest.mark.parametrize("port", ["65536", "99999", "-1", "", "1e3", "0x50", "٥٠", " 80", "100000", "+80"])  # noqa: RUF001
def test_ports(name: str, port: str) -> None:
    """A port is a number up to 65,535; port 0 takes a free one."""
    refused(name, f"127.0.0.1:{port}")
    assert "127.0.0.1:0" in str(resolved(name, "127.0.0.1:0"))
    assert "127.0.0.1:65535" in str(resolved(name, "127.0.0.1:65535"))


@pytest.mark.parametrize("name", ["aws.kms.endpoint", "kms.store.endpoint"])
@pytest.mark.parametrize("endpoint", ["http://h:0", "http://h:65536", "http://h:99999", "http://h:٥", "http://h\n"])  # noqa: RUF001
def test_ports_of_endpoints(name: str, endpoint: str) -> None:
    """A port that no server has is refused at start, not at the first call."""
    if endpoint.endswith("\n"):
        endpoint += "x"
    refused(name, endpoint)


REGIONS = [
    ("aws", "us-east-1"),
    ("aws", "ap-southeast-7"),
    ("aws", "mx-central-1"),
    ("aws-cn", "cn-northwest-1"),
    ("aws-us-gov", "us-gov-west-1"),
    ("aws-iso", "us-iso-east-1"),
    ("aws-iso-b", "us-isob-east-1"),
    ("aws-iso-e", "eu-isoe-west-1"),
    ("aws-iso-f", "us-isof-south-1"),
    ("aws-eusc", "eusc-de-east-1"),
]


@pytest.mark.parametrize(("partition", "region"), REGIONS)
def test_regions_of_every_partition(partition: str, region: str) -> None:
    """The Regions of botocore's endpoints, the European Sovereign Cloud among them, wherever a Region is given."""
    arn = f"arn:{partition}:kms:{region}:123456789012:key/mrk-1"
    replica = arn.replace(region, "eusc-de-west-2" if "de-east" in region else "eusc-de-east-1")
    settings, _ = resolve(
        [
            Source(
                "test",
                {
                    "betrace.kms.provider": "aws",
                    "aws.kms.master-key-id": arn,
                    "aws.kms.region": region,
                    "aws.kms.replica-key-ids": replica,
                    "kms.store": "dynamodb",
                    "kms.store.table": "keys",
                    "kms.store.region": region,
                },
            )
        ]
    )
    assert (region, region, (replica,)) == (settings.kms_region, settings.dynamodb_region, settings.replica_key_ids)


@pytest.mark.parametrize("region", ["useast1", "us-east", "US-EAST-1", "us-east-1a", "us_east_1", "us-east-٥", "eusc"])  # noqa: RUF001
def test_what_is_no_region(region: str) -> None:
    """Zones, other spellings and half names are refused."""
    refused("kms.store.region", region)
