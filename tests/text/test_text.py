"""Numbers, durations and tables, as they are read and shown."""

from __future__ import annotations

import pytest

from hyena_ds.text import aligned, in_tokens, number, parse_duration, show_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3h50m", 13800.0),
        ("90s", 90.0),
        ("1d2h", 93600.0),
        ("13800", 13800.0),
        ("2.5s", 2.5),
        (" 1m1s ", 61.0),
        ("1d1h1m1.5s", 90061.5),
    ],
)
def test_a_duration_is_read_with_its_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0m",
        "-5",
        "3h50",
        "50m3h",
        "soon",
        "1.5h",
        "nan",
        "inf",
        "1e3",
        "٣",
        "1s 2s",
        "9" * 400,
        "9" * 400 + "d",
    ],
)
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.5, "0.5 s"),
        (4.24, "4.2 s"),
        (10, "10 s"),
        (59, "59 s"),
        (60, "1m00s"),
        (61, "1m01s"),
        (119.6, "2m00s"),
        (3599.6, "1h00m"),
        (3725, "1h02m"),
        (90000, "1d01h"),
        (86400 * 1200, "1,200d00h"),
    ],
)
def test_a_duration_is_shown_as_its_two_largest_units(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown


@pytest.mark.parametrize("seconds", [1, 45, 725, 13800, 176400])
def test_what_is_shown_from_a_minute_on_is_read_back(seconds: int) -> None:
    assert parse_duration(show_duration(seconds).replace(" ", "")) == seconds


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.0123456, "0.0123"),
        (12.345, "12.3"),
        (999.4, "999"),
        (1000.0, "1,000"),
        (-1234567.8, "-1,234,568"),
        (1e-9, "1e-09"),
    ],
)
def test_a_number_has_three_digits_or_all_of_its_thousands(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("length", "shown"),
    [(512, "512"), (1000, "1,000"), (1024, "1k"), (1536, "1,536"), (8192, "8k"), (1 << 20, "1M"), (3 << 19, "1536k")],
)
def test_a_context_length_is_shown_in_powers_of_two(length: int, shown: str) -> None:
    assert in_tokens(length) == shown


def test_a_table_has_columns_of_one_width_on_the_right_or_the_left() -> None:
    rows = [["run", "loss"], ["a", "1.25"], ["longest", "2"]]
    assert aligned(rows) == ["    run  loss", "      a  1.25", "longest     2"]
    assert aligned(rows, left=(0,)) == ["run      loss", "a        1.25", "longest     2"]


def test_no_line_ends_in_blanks() -> None:
    assert aligned([["a", "long"], ["b", ""], ["c", "x"]], left=(0, 1)) == ["a  long", "b", "c  x"]


def test_the_last_cell_of_a_shorter_row_widens_no_column() -> None:
    rows = [["1", "2", "3"], ["7", "a sentence about the row above"]]
    assert aligned(rows, left=(1,)) == ["1  2  3", "7  a sentence about the row above"]


def test_a_table_without_rows_has_no_lines() -> None:
    assert aligned([]) == []
