"""What a million spans a second takes follows from the CPU of one."""

from bench import sizing
from bench.records import Case, Record


def test_a_microsecond_a_span_is_a_core() -> None:
    """70 us: 70 cores, 100 pods; each asks KMS for 10,000 keys in 45 minutes, and reads 10,000 heads a minute."""
    (row,) = sizing.rows({"SignSpan": Record(Case("SignSpan"), "ours", rounds=1, server_cpu_us=70.0)})
    assert ["70.0", "70", "100", "370", "2,920", "16,667", "5,475"] == list(row[1:])


def test_what_was_not_measured_has_no_row() -> None:
    """A run of some calls only makes a shorter table."""
    assert [] == list(sizing.rows({"SignSpan": Record(Case("SignSpan"), "ours", rounds=1)}))
