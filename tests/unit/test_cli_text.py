"""What is printed is safe, aligned and readable."""

from __future__ import annotations

import pytest

from layerstore.report.terminal import permissions
from layerstore.report.text import (
    age,
    clipped,
    duration,
    escaped,
    shown,
    size,
    span,
    table,
    timestamp,
    width,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name", "plain name"),
        ("grüße 漢字", "grüße 漢字"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("tab\tline\ncr\r", "tab\\tline\\ncr\\r"),
        ("nul\0del\x7fc1\x9b", "nul\\x00del\\x7fc1\\x9b"),
        ("bidi\u202e\u2066", "bidi\\u202e\\u2066"),
        ("line\u2028", "line\\u2028"),
        ("zero\u200b", "zero\\u200b"),
        ("byte\udcff", "byte\\xff"),
        ("tag\U000e0001", "tag\\U000e0001"),
    ],
)
def test_what_does_not_print_as_itself_is_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected
    assert expected.isprintable()


def test_bytes_that_are_no_text_are_escaped() -> None:
    assert shown(b"a\xff\x1b\xc3\xa9") == "a\\xff\\x1bé"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1234, "1.23 kB"), (9_999, "10.0 kB"),
        (12_345, "12.3 kB"), (934_100_000, "934.1 MB"), (999_960, "1.00 MB"),
        (3_330_000_000, "3.33 GB"), (10**24, "1000000.0 EB"),
    ],
)  # fmt: skip
def test_sizes_have_decimal_units(count: int, expected: str) -> None:
    assert size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "0 seconds"), (1, "1 second"), (59.9, "59 seconds"), (60, "1 minute"),
        (3600, "1 hour"), (86400, "1 day"), (7 * 86400, "1 week"), (800 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_a_length_of_time_is_in_its_largest_unit(seconds: float, expected: str) -> None:
    assert span(seconds) == expected


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        ("1970-01-01T00:16:40Z", "1 minute ago"),
        ("1970-01-01T01:16:40.123456789+01:00", "59 seconds ago"),
        ("1970-01-01T00:00:00Z", "-"),
        (None, "-"),
        ("", "-"),
        ("yesterday", "-"),
        ("9999-12-31T23:59:59Z", "0 seconds ago"),
    ],
)
def test_an_age_is_that_of_an_rfc_3339_time(created: str | None, expected: str) -> None:
    assert age(created, 1060.0) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.04, "0.0s"), (12, "12.0s"), (185, "3m05s"), (3720, "1h02m")]
)
def test_a_duration_is_short(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_500_000_000, "1970-01-01T00:00:01.5Z"),
        (-1_000_000_000, "1969-12-31T23:59:59Z"),
        (10**30, "@1000000000000000000000"),
    ],
)
def test_a_time_is_rfc_3339(ns: int, expected: str) -> None:
    assert timestamp(ns) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (0o644, "rw-r--r--"), (0o755, "rwxr-xr-x"), (0o4755, "rwsr-xr-x"), (0o2644, "rw-r-Sr--"),
        (0o1777, "rwxrwxrwt"), (0o1770, "rwxrwx--T"), (0, "---------"),
    ],
)  # fmt: skip
def test_permissions_are_letters(mode: int, expected: str) -> None:
    assert permissions(mode) == expected


def test_columns_are_counted_not_characters() -> None:
    assert width("漢e\u0301") == 3
    assert clipped("漢字漢字", 5) == "漢字…"
    assert clipped("漢字漢字", 4) == "漢…"
    assert clipped("abcd", 4) == "abcd"
    assert clipped("abcd", None) == "abcd"


def test_a_table_is_aligned_and_escaped() -> None:
    assert table(("A", "N", "B"), [("漢", "1", "x"), ("ab\n", "22", "")], right="lr") == (
        "A       N   B\n"
        "漢      1   x\n"
        "ab\\n   22"
    )  # fmt: skip
