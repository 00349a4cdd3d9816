"""Counts, durations and cadences: every unit that is read, and every refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipscale.config import Cadence, parse_cadence, parse_count, parse_duration

LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (0, 0),
        (1000, 1000),
        (4e6, 4_000_000),
        ("4096", 4096),
        ("64k", 64_000),
        ("64K", 64_000),
        ("20M", 20_000_000),
        ("20m", 20_000_000),
        ("12.8B", 12_800_000_000),
        ("1.5 T", 1_500_000_000_000),
        ("1_000_000", 1_000_000),
        ("4e6", 4_000_000),
        ("2.5e3", 2500),
        ("25.6b", 25_600_000_000),
        ("0.001k", 1),
        (" 7 ", 7),
        (LARGEST, LARGEST),
        # One more digit than a float or a 28-digit decimal keeps.
        ("9223372036854775.807k", LARGEST),
    ],
)
def test_count_is_read_exactly(text, count):
    assert parse_count(text) == count
    assert type(parse_count(text)) is int


@pytest.mark.parametrize(
    "text",
    [
        -1,
        "-64k",
        "+5",
        "1.5",
        1.5,
        "0.0001k",
        "1e-3",
        "",
        "k",
        "10x",
        "10 kk",
        "10min",
        "5 steps",
        "0x10",
        "1,000",
        "nan",
        float("nan"),
        float("inf"),
        "1e99999999",
        "1e999",
        LARGEST + 1,
        "9223372036854775.808k",
        True,
        None,
        [1],
        {"a": 1},
    ],
)
def test_wrong_count_is_refused(text):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_count(text)


@given(st.integers(0, LARGEST))
def test_every_whole_number_is_a_count(number):
    assert parse_count(number) == parse_count(str(number)) == number
    assert parse_count(f"{number // 1000}.{number % 1000:03}k") == number


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90 sec", 90),
        ("30min", 1800),
        ("30m", 1800),
        ("24h", 86_400),
        ("7d", 604_800),
        ("1h30min", 5400),
        ("1h 30min 5s", 5405),
        ("0.5h", 1800),
        ("0s", 0),
        ("2H", 7200),
    ],
)
def test_duration_is_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [30, 30.0, "30", "", "h", "-5min", "1.5s", "5 weeks", "1h30", "min5", "24:00:00", "9 steps", None],
)
def test_wrong_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "cadence"),
    [
        ("20M samples", Cadence(20_000_000, "samples")),
        ("1 sample", Cadence(1, "samples")),
        ("500 steps", Cadence(500, "steps")),
        ("2k steps", Cadence(2000, "steps")),
        ("1 STEP", Cadence(1, "steps")),
        ("30min", Cadence(1800, "seconds")),
        ("1h30min", Cadence(5400, "seconds")),
        ("90s", Cadence(90, "seconds")),
        (4096, Cadence(4096, "samples")),
        ("1.28B", Cadence(1_280_000_000, "samples")),
    ],
)
def test_cadence_is_read(text, cadence):
    assert parse_cadence(text) == cadence
    assert parse_cadence(str(cadence)) == cadence
    assert parse_cadence(cadence) is cadence


@pytest.mark.parametrize(
    "text",
    [
        0,
        -5,
        "0 steps",
        "0 samples",
        "-1 steps",
        "0s",
        "1.5 steps",
        "every step",
        "steps",
        "5 epochs",
        "",
        True,
        None,
        ["30min"],
        {"amount": 5, "unit": "steps"},
    ],
)
def test_wrong_cadence_is_refused(text):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_cadence(text)


@pytest.mark.parametrize("text", ["20m", "20M", " 20 M", "1.5m"])
def test_millions_and_minutes_are_never_guessed(text):
    with pytest.raises(ValueError, match="ambiguous; write 20min, or 20M samples"):
        parse_cadence(text)


@given(st.integers(1, LARGEST), st.sampled_from(["samples", "steps", "seconds"]))
def test_printed_cadence_reads_back(amount, unit):
    cadence = Cadence(amount, unit)
    assert parse_cadence(str(cadence)) == cadence
