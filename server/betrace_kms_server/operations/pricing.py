"""What KMS costs in a month, by the prices of us-east-1 (https://aws.amazon.com/kms/pricing/), the free tier aside."""

SECONDS_PER_MONTH = 730 * 3600
KEY_DOLLARS = 1.00
"""A customer managed key, for a month."""
CALL_DOLLARS = 0.03 / 10_000


def monthly_dollars(calls_per_second: float, keys: int = 1) -> float:
    """Return the price of a month with this many calls to KMS and customer managed keys."""
    return keys * KEY_DOLLARS + calls_per_second * SECONDS_PER_MONTH * CALL_DOLLARS
