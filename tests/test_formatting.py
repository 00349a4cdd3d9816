"""Quantities as people read them; the edges are those at which the unit changes."""

from __future__ import annotations

import pytest

from flipscale.config.units import parse_count
from flipscale.formatting import (
    format_bytes,
    format_clock,
    format_count,
    format_digits,
    format_duration,
    format_gib,
    format_hours,
    format_interval,
    format_megabytes,
    format_millions,
    format_minutes,
    format_percent,
    format_quantity,
    format_rate,
    pick_memory_unit,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (65_536, "65.54k"),
        (20_500_000, "20.5M"),
        (12_800_000_000, "12.8B"),
        (1_280_000_000_000, "1280B"),
    ],
)
def test_counts_take_the_largest_unit(count: int, text: str):
    assert format_count(count) == text


@pytest.mark.parametrize("text", ["12.8B", "20M", "64k", "960"])
def test_count_reads_as_it_is_written_in_a_job(text: str):
    assert format_count(parse_count(text)) == text


def test_parameters_are_in_millions():
    assert format_millions(86_192_640) == "86.2 M"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1500, "1,500 runs")]
)
def test_quantity_takes_the_plural_of_its_noun(number: int, text: str):
    assert format_quantity(number, "run") == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (1e-9, "1e-09"),
        (0.0891, "0.0891"),
        (0.5, "0.500"),
        (9.876, "9.88"),
        (56.71, "56.7"),
        (100, "100"),
        (1234.5, "1,234"),
        (999_999_999_999, "999,999,999,999"),
        (1e308, "1e+308"),
    ],
)
def test_small_numbers_keep_three_digits(number: float, text: str):
    assert format_digits(number) == text


@pytest.mark.parametrize(
    ("largest", "unit"), [(0, "KiB"), (100e3, "KiB"), (105e3, "MiB"), (107e6, "MiB"), (108e6, "GiB")]
)
def test_memory_of_a_table_takes_the_unit_that_shows_it(largest: float, unit: str):
    name, size = pick_memory_unit(largest)
    assert name == unit
    assert size == {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]


@pytest.mark.parametrize(
    ("rate", "text"), [(0.0123, "0.012"), (9.94, "9.9"), (10, "10"), (1234.5, "1,234"), (12_345.6, "12,346")]
)
def test_slow_rates_keep_two_digits(rate: float, text: str):
    assert format_rate(rate) == text


def test_shares_are_percentages_with_one_decimal():
    assert format_percent(0.12345) == "12.3%"
    assert format_interval((0.118, 0.1294)) == "11.8% to 12.9%"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1min 00s"),
        (200, "3min 20s"),
        (3600, "1h 00min"),
        (7500, "2h 05min"),
        (86399, "23h 59min"),
        (273_600, "3d 04h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (0.0674, "0.0674 s"), (59.9, "59.9 s"), (90, "1.5 min"), (3599, "60.0 min")),
        *((3600, "1.0 h"), (36_000_000, "10,000.0 h")),
    ],
)
def test_estimates_are_in_hours_minutes_or_seconds(seconds: float, text: str):
    assert format_hours(seconds) == text


def test_time_limits_are_in_whole_minutes():
    assert format_minutes(5459) == "90 min"


@pytest.mark.parametrize(("seconds", "text"), [(9.9, "0:00:09"), (3725, "1:02:05"), (93_909, "26:05:09")])
def test_clock_counts_hours_beyond_a_day(seconds: float, text: str):
    assert format_clock(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (45_600, "45.6 kB"), (1.234e9, "1.23 GB"), (5e12, "5 TB")],
)
def test_sizes_of_files_are_in_powers_of_1000(size: float, text: str):
    assert format_bytes(size) == text


def test_sizes_in_megabytes_keep_their_unit():
    assert format_megabytes(400_000) == "0.4 MB"
    assert format_megabytes(1_234_500_000) == "1234.5 MB"


def test_memory_is_in_powers_of_1024():
    assert format_gib(3 * 2**29) == "1.5 GiB"
    assert format_gib(3 * 2**29, 2) == "1.50 GiB"
    assert format_gib(78 * 2**30, 0) == "78 GiB"
