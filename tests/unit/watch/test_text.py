from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from spin_pipeline.watch.text import clean, duration, fit, harmless, number, sparkline, wrapped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\n\n  and more", "two ⏎ lines ⏎ and more"),
        ("\x1b[2J\x1b]0;title\x07", "␛[2J␛]0;title␇"),
        ("a\x9b31mb", "a�31mb"),  # one-byte form of ESC [
        ("back\x08space\x7f", "back␈space␡"),
        ("abc\u202edef", "abc�def"),  # right-to-left override
        ("abc\u2d68def", "abc�def"),  # unassigned in Unicode
        ("line\u2028paragraph", "line paragraph"),
        ("[red]markup[/red]", "[red]markup[/red]"),
        ("👩\u200d🔬", "👩\u200d🔬"),
    ],
)
def test_control_characters_are_replaced(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(st.text())
def test_any_text_becomes_one_line_that_can_be_printed(text: str) -> None:
    shown = clean(text)
    assert "\n" not in shown
    assert all(character.isprintable() or character == "\u200d" for character in shown if ord(character) < 0x3000)


def test_harmless_text_keeps_its_lines_and_spaces() -> None:
    assert harmless("a  b\n\x1b[1mc") == "a  b\n␛[1mc"


@given(st.text(), st.integers(0, 40))
def test_text_is_fitted_to_the_exact_width(text: str, width: int) -> None:
    assert cell_len(fit(clean(text), width)) == width


@given(st.text(), st.integers(4, 40), st.integers(1, 3))
def test_wrapped_lines_keep_within_width_and_number(text: str, width: int, num_lines: int) -> None:
    lines = wrapped(clean(text), width, num_lines)
    assert len(lines) <= num_lines
    assert all(cell_len(line) <= width for line in lines)


def test_lines_break_between_words_and_the_last_one_ends_with_an_ellipsis() -> None:
    assert wrapped("one two three four five", 9, 2) == ["one two", "three fo…"]


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 5, ""),
        ([3.0, 3.0], 5, "▁▁"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8, "▁▂▃▄▅▆▇█"),
        ([0.0, 0.0, 4.0, 4.0], 2, "▁█"),  # each the mean of two values
    ],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest(values: list[float], width: int, drawn: str) -> None:
    assert sparkline(values, width) == drawn


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.44, "0.4 s"),
        (59.4, "59 s"),
        (65, "1:05"),
        (7384, "2:03:04"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
        (-1, "0.0 s"),
    ],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.693147, "0.6931"), (-2.5, "-2.500"), (5e-7, "5.0e-07"), (1234.5, "1,234"), (2.5e7, "2.5e+07")],
)
def test_numbers_have_four_significant_digits(value: float, shown: str) -> None:
    assert number(value) == shown
