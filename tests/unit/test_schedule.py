"""Schedule: Quartz expressions against an oracle that walks the calendar by Quartz's rules, without cron fields."""

import calendar
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from betrace_kms_server.core.schedule import EXAMPLE, LOOK_BACK, Schedule
from hypothesis import given, settings
from hypothesis import strategies as st

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
QUARTZ_DAYS = {"SUN": 1, "MON": 2, "TUE": 3, "WED": 4, "THU": 5, "FRI": 6, "SAT": 7}


def at(year: int, month: int = 1, day: int = 1, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def quartz_day(instant: datetime) -> int:
    return instant.isoweekday() % 7 + 1


def month_days(instant: datetime) -> int:
    return calendar.monthrange(instant.year, instant.month)[1]


def forwards(schedule: Schedule, start: datetime, end: datetime) -> Iterator[datetime]:
    """Walk from fire to fire, start included and end not, as a clock that jumps would."""
    instant = schedule.next_after(start - SECOND)
    while instant is not None and instant < end:
        yield instant
        instant = schedule.next_after(instant)


def backwards(schedule: Schedule, start: datetime, end: datetime) -> Iterator[datetime]:
    instant = schedule.last_before(end - SECOND)
    while instant is not None and instant >= start:
        yield instant
        instant = schedule.last_before(instant - SECOND)


def test_default_over_a_leap_year() -> None:
    """The cron fires at the right instants over a year: the default at 02:00 of each of 366 days."""
    schedule = Schedule.parse(EXAMPLE)
    expected = [at(2028, hour=2) + timedelta(days=day) for day in range(366)]
    assert at(2028, 2, 29, 2) in expected
    assert expected == list(forwards(schedule, at(2028), at(2029)))


Rule = Callable[[datetime], bool]


def midnight(rule: Rule) -> Rule:
    return lambda t: (t.hour, t.minute, t.second) == (0, 0, 0) and rule(t)


TABLE: list[tuple[str, int, timedelta, timedelta, Rule]] = [
    # expression, from which year, for how long, step of the walk, rule
    ("* * * * * ?", 2027, 15 * MINUTE, SECOND, lambda t: True),
    ("*/20 * * * * ?", 2027, 15 * MINUTE, SECOND, lambda t: t.second in (0, 20, 40)),
    ("7/20 * * ? * *", 2027, 15 * MINUTE, SECOND, lambda t: t.second in (7, 27, 47)),
    ("50-5 0 0 * * ?", 2027, 2 * DAY, SECOND, lambda t: t.hour == t.minute == 0 and not 5 < t.second < 50),
    ("1,3-5,58/1 9 0 * * ?", 2027, HOUR, SECOND, lambda t: t.minute == 9 and t.second in (1, 3, 4, 5, 58, 59)),
    ("0 */15 * * * ?", 2027, 7 * DAY, MINUTE, lambda t: t.minute % 15 == 0),
    ("0 5/7 * * * ?", 2027, 7 * DAY, MINUTE, lambda t: t.minute >= 5 and (t.minute - 5) % 7 == 0),
    ("0 50-10/5 * * * ?", 2027, 7 * DAY, MINUTE, lambda t: t.minute in (50, 55, 0, 5, 10)),
    ("0 0 22-2 * * ?", 2027, 14 * DAY, MINUTE, lambda t: t.minute == 0 and t.hour in (22, 23, 0, 1, 2)),
    ("0 0 9-17/4 ? * MON-FRI", 2027, 14 * DAY, HOUR, lambda t: t.hour in (9, 13, 17) and t.isoweekday() <= 5),
    ("0 0 0 L * ?", 2027, 800 * DAY, HOUR, midnight(lambda t: t.day == month_days(t))),
    ("0 0 0 31 * ?", 2027, 400 * DAY, HOUR, midnight(lambda t: t.day == 31)),
    ("0 0 0 28-2 * ?", 2027, 800 * DAY, HOUR, midnight(lambda t: t.day >= 28 or t.day <= 2)),
    ("0 0 0 1/10 * ?", 2027, 400 * DAY, HOUR, midnight(lambda t: t.day in (1, 11, 21, 31))),
    ("0 0 0 */10 * ?", 2027, 400 * DAY, HOUR, midnight(lambda t: t.day in (1, 11, 21, 31))),
    ("0 0 0 29 2 ?", 2024, 1900 * DAY, HOUR, midnight(lambda t: (t.month, t.day) == (2, 29))),
    ("0 0 0 29 FEB ? 2025-2031", 2024, 3000 * DAY, HOUR, midnight(lambda t: (t.year, t.month, t.day) == (2028, 2, 29))),
    ("0 0 0 1 NOV-FEB ?", 2027, 800 * DAY, HOUR, midnight(lambda t: t.day == 1 and t.month in (11, 12, 1, 2))),
    ("0 0 0 1 2/5 ?", 2027, 800 * DAY, HOUR, midnight(lambda t: t.day == 1 and t.month in (2, 7, 12))),
    ("0 0 0 1 1 ? 2027/2", 2026, 1900 * DAY, HOUR, midnight(lambda t: t.month == t.day == 1 and t.year % 2 == 1)),
    ("0 0 0 ? * 6#3", 2027, 800 * DAY, HOUR, midnight(lambda t: t.isoweekday() == 5 and 15 <= t.day <= 21)),
    ("0 0 0 ? * sun#1", 2027, 800 * DAY, HOUR, midnight(lambda t: t.isoweekday() == 7 and t.day <= 7)),
    ("0 0 0 ? * 2#5", 2027, 800 * DAY, HOUR, midnight(lambda t: t.isoweekday() == 1 and t.day >= 29)),
    ("0 0 0 ? * FRIL", 2027, 800 * DAY, HOUR, midnight(lambda t: t.isoweekday() == 5 and t.day > month_days(t) - 7)),
    ("0 0 0 ? * 1L", 2027, 800 * DAY, HOUR, midnight(lambda t: t.isoweekday() == 7 and t.day > month_days(t) - 7)),
    ("0 0 0 ? * L", 2027, 100 * DAY, HOUR, midnight(lambda t: t.isoweekday() == 6)),
    ("0 0 0 ? * FRI-MON", 2027, 100 * DAY, HOUR, midnight(lambda t: t.isoweekday() in (5, 6, 7, 1))),
    ("0 0 0 ? * 6-2", 2027, 100 * DAY, HOUR, midnight(lambda t: t.isoweekday() in (5, 6, 7, 1))),
    ("0 0 0 ? * 2/2", 2027, 100 * DAY, HOUR, midnight(lambda t: t.isoweekday() in (1, 3, 5))),
    ("0 0 0 ? * */3", 2027, 100 * DAY, HOUR, midnight(lambda t: t.isoweekday() in (7, 3, 6))),
    ("0 0 0 ? jan,Mar mon,3", 2027, 400 * DAY, HOUR, midnight(lambda t: t.month in (1, 3) and t.isoweekday() <= 2)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "year", "span", "step", "rule"), TABLE, ids=[row[0] for row in TABLE])
def test_table(text: str, year: int, span: timedelta, step: timedelta, rule: Rule) -> None:
    """Each expression fires when the rule beside it says so, walked forwards and backwards."""
    start, end = at(year), at(year) + span
    expected = []
    instant = start
    while instant < end:
        if rule(instant):
            expected.append(instant)
        instant += step
    assert expected
    schedule = Schedule.parse(text)
    assert expected == list(forwards(schedule, start, end))
    assert expected[::-1] == list(backwards(schedule, start, end))


@pytest.mark.parametrize(("name", "number"), QUARTZ_DAYS.items())
def test_weekday_numbers(name: str, number: int) -> None:
    """Weekdays count from Sunday, which is 1; names and numbers say the same."""
    sunday = at(2027, 8, 1)
    expected = sunday + timedelta(days=number - 1)
    for text in (str(number), name, name.lower(), f"{number}#1", f"{name}#1"):
        assert expected == Schedule.parse(f"0 0 0 ? * {text}").next_after(sunday - SECOND)


Numbers = tuple[str, frozenset[int]]


def items(low: int, high: int) -> st.SearchStrategy[Numbers]:
    """Draw one item of a field, and the numbers that it stands for."""
    number = st.integers(low, high)
    step = st.integers(1, high)

    def span(first: int, last: int) -> list[int]:
        if first <= last:
            return list(range(first, last + 1))
        return [*range(first, high + 1), *range(low, last + 1)]

    return st.one_of(
        st.just(("*", frozenset(span(low, high)))),
        number.map(lambda n: (str(n), frozenset([n]))),
        st.tuples(number, number).map(lambda r: (f"{r[0]}-{r[1]}", frozenset(span(*r)))),
        st.tuples(number, number, step).map(lambda r: (f"{r[0]}-{r[1]}/{r[2]}", frozenset(span(r[0], r[1])[:: r[2]]))),
        st.tuples(number, step).map(lambda r: (f"{r[0]}/{r[1]}", frozenset(span(r[0], high)[:: r[1]]))),
        step.map(lambda b: (f"*/{b}", frozenset(span(low, high)[::b]))),
    )


def numbers(low: int, high: int) -> st.SearchStrategy[Numbers]:
    return st.lists(items(low, high), min_size=1, max_size=3).map(
        lambda drawn: (",".join(text for text, _ in drawn), frozenset().union(*(found for _, found in drawn)))
    )


@st.composite
def expressions(draw: st.DrawFn) -> tuple[str, Rule, list[tuple[int, int, int]]]:
    """Draw an expression, whether it fires on a day, and at which times of such a day."""
    clock = [draw(numbers(0, 59)), draw(numbers(0, 59)), draw(numbers(0, 23))]
    month, months = draw(numbers(1, 12))
    if draw(st.booleans()):
        day, days = draw(numbers(1, 31).filter(lambda drawn: min(drawn[1]) <= 28))
        weekday, weekdays = "?", frozenset(range(1, 8))
    else:
        day, days = "?", frozenset(range(1, 32))
        weekday, weekdays = draw(numbers(1, 7))
    times = [(h, m, s) for h in sorted(clock[2][1]) for m in sorted(clock[1][1]) for s in sorted(clock[0][1])]
    text = " ".join([*(text for text, _ in clock), day, month, weekday])
    return text, lambda t: t.month in months and t.day in days and quartz_day(t) in weekdays, times


@settings(max_examples=150, deadline=None)
@given(
    drawn=expressions(),
    instant=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
)
def test_random_expressions(drawn: tuple[str, Rule, list[tuple[int, int, int]]], instant: datetime) -> None:
    """The next and the last instant are those that a walk from day to day finds."""
    text, fits, times = drawn
    midnight = instant.replace(hour=0, minute=0, second=0, microsecond=0)

    def first(days: range, within: Callable[[datetime], bool]) -> datetime:
        for day in (midnight + timedelta(days=offset) for offset in days):
            ordered = times if days.step > 0 else reversed(times)
            for hour, minute, second in ordered if fits(day) else []:
                if within(found := day.replace(hour=hour, minute=minute, second=second)):
                    return found
        raise AssertionError(f"{text} does not fire within two years")

    schedule = Schedule.parse(text)
    assert first(range(0, 800), lambda t: t > instant) == schedule.next_after(instant)
    assert first(range(0, -800, -1), lambda t: t <= instant) == schedule.last_before(instant)


@pytest.mark.parametrize("text", [EXAMPLE, "*/7 * 3 ? * 6#3", "0 0 0 29 2 ?", "0 0 12 L * ?", "0 0 0 1 1 ? 2026-2029"])
def test_next_and_last_are_inverse(text: str) -> None:
    """What comes next is the last one at its own instant, and not a microsecond earlier."""
    schedule = Schedule.parse(text)
    instant = schedule.next_after(at(2025, 6, 15))
    assert instant is not None
    after = schedule.next_after(instant)
    assert after is not None
    assert instant == schedule.last_before(instant)
    assert instant == schedule.last_before(after - timedelta(microseconds=1))
    assert after == schedule.last_before(after)
    assert after == schedule.next_after(after - timedelta(microseconds=1))


def test_other_time_zones() -> None:
    """An instant of another time zone is the same instant; the schedule stays in UTC."""
    tokyo = at(2027, 1, 1, 15).astimezone(timezone(9 * HOUR))
    schedule = Schedule.parse(EXAMPLE)
    assert "2027-01-02 02:00:00+00:00" == str(schedule.next_after(tokyo))
    assert "2027-01-01 02:00:00+00:00" == str(schedule.last_before(tokyo))


def test_years_end() -> None:
    """A schedule of certain years skips the years between, and is over after the last."""
    schedule = Schedule.parse("0 0 2 1 1 ? 2026,2029")
    assert at(2029, 1, 1, 2) == schedule.next_after(at(2026, 1, 1, 2))
    assert schedule.next_after(at(2029, 1, 1, 2)) is None
    assert at(2026, 1, 1, 2) == schedule.last_before(at(2029, 1, 1, 1, 59, 59))
    assert schedule.last_before(at(2026)) is None


def test_look_back_is_bounded() -> None:
    """A run that was missed longer ago than the bound is not found."""
    schedule = Schedule.parse("0 0 2 1 1 ? 2026")
    fired = at(2026, 1, 1, 2)
    assert fired == schedule.last_before(fired + LOOK_BACK)
    assert schedule.last_before(fired + LOOK_BACK + SECOND) is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "6 or 7 fields"),
        ("0 2 * * *", "this one has 5"),
        ("0 0 2 * * ? * *", "this one has 8"),
        ("0 0 2 * * *", "exactly one"),
        ("0 0 2 ? * ?", "exactly one"),
        ("0 0 2 1 * MON", "exactly one"),
        ("60 0 2 * * ?", "seconds '60'"),
        ("0 60 2 * * ?", "minutes '60'"),
        ("0 0 24 * * ?", "hours '24'"),
        ("0 0 2 0 * ?", "day-of-month '0'"),
        ("0 0 2 32 * ?", "day-of-month '32'"),
        ("0 0 2 1 0 ?", "month '0'"),
        ("0 0 2 1 13 ?", "month '13'"),
        ("0 0 2 1 JANUARY ?", "month 'JANUARY'"),
        ("0 0 2 1 MON ?", "month 'MON'"),
        ("0 0 2 ? * 0", "day-of-week '0'"),
        ("0 0 2 ? * 8", "day-of-week '8'"),
        ("0 0 2 ? * JAN", "day-of-week 'JAN'"),
        ("0 0 2 * * ? 1969", "year '1969'"),
        ("0 0 2 * * ? 2100", "year '2100'"),
        ("0 0 2 * * ? 2030-2028", "year '2030-2028'"),
        ("0 0 2 15W * ?", "day-of-month '15W'"),
        ("0 0 2 LW * ?", "day-of-month 'LW'"),
        ("0 0 2 L-3 * ?", "day-of-month 'L-3'"),
        ("0 0 2 5C * ?", "day-of-month '5C'"),
        ("0 0 2 15,L * ?", "day-of-month 'L'"),
        ("0 0 2 ? * 1C", "day-of-week '1C'"),
        ("0 0 2 ? * 2,6L", "day-of-week '6L'"),
        ("0 0 2 ? * 2#1,6#3", "day-of-week '2#1'"),
        ("0 0 2 ? * 6#0", "day-of-week '6#0'"),
        ("0 0 2 ? * 6#6", "day-of-week '6#6'"),
        ("0 0 2 ? * 8L", "day-of-week '8L'"),
        ("0 0 2 ? * 8#1", "day-of-week '8#1'"),
        ("0 0 2 ? * MON/2", "day-of-week 'MON/2'"),
        ("0 0 2 ? * MON-FRI/2", "day-of-week 'MON-FRI/2'"),
        ("0 0 ? * * ?", "hours '?'"),
        ("0 ? 2 * * ?", "minutes '?'"),
        ("0 0/0 2 * * ?", "minutes '0/0'"),
        ("0 0/60 2 * * ?", "minutes '0/60'"),
        ("0 0 */24 * * ?", "hours '*/24'"),
        ("0 1,,2 2 * * ?", "minutes ''"),
        ("0 1- 2 * * ?", "minutes '1-'"),
        ("0 -1 2 * * ?", "minutes '-1'"),
        ("0 ٣ 2 * * ?", "minutes '٣'"),
        (f"0 {'9' * 5000} 2 * * ?", "minutes '999"),
        ("0 0 2 30 2 ?", "would never run"),
        ("0 0 2 29 2 ? 2025-2027", "would never run"),
        ("0 0 2 ? 2 2#5 2027", "would never run"),
    ],
)
def test_refusals(text: str, named: str) -> None:
    """What is refused says where it is wrong, in one line, and shows an expression that works."""
    with pytest.raises(ValueError, match=r"an example is 0 0 2 \* \* \?") as refusal:
        Schedule.parse(text)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)
