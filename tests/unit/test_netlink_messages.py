"""Netlink's bytes, made and read."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.kernel.netlink import (
    attribute,
    nested,
    parse_attributes,
    parse_error,
    parse_messages,
    text,
    word,
)
from layerstore.kernel.rtnetlink import check_link_name

HEADER = struct.Struct("=IHHII")


def message(body: bytes, *, kind: int = 2, flags: int = 0, length: int | None = None) -> bytes:
    total = 16 + len(body) if length is None else length
    return HEADER.pack(total, kind, flags, 7, 0) + body + bytes(-len(body) % 4)


def test_attributes_are_padded_and_their_length_is_not() -> None:
    assert text(3, "br0") == struct.pack("=HH", 8, 3) + b"br0\0"
    assert attribute(1, b"abcdef") == struct.pack("=HH", 10, 1) + b"abcdef\0\0"
    assert word(4, 1500) == struct.pack("=HHI", 8, 4, 1500)
    assert nested(18, text(1, "veth")) == (
        struct.pack("=HH", 16, 18 | 0x8000) + struct.pack("=HH", 9, 1) + b"veth\0\0\0\0"
    )


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40)))
def test_attributes_are_read_as_they_were_made(values: dict[int, bytes]) -> None:
    made = b"".join(attribute(kind, value) for kind, value in values.items())
    assert parse_attributes(made) == values


@given(st.binary(max_size=80))
def test_any_bytes_are_attributes_or_an_error(data: bytes) -> None:
    try:
        parse_attributes(data)
    except OSError as error:
        assert error.errno == errno.EBADMSG


@pytest.mark.parametrize(
    "data",
    [b"\1", struct.pack("=HH", 3, 1), struct.pack("=HH", 8, 1), struct.pack("=HH", 0, 0)],
    ids=["cut header", "shorter than itself", "longer than the rest", "empty"],
)
def test_attributes_whose_lengths_do_not_add_up_are_an_error(data: bytes) -> None:
    with pytest.raises(OSError, match="the kernel's answer is malformed"):
        parse_attributes(data)


def test_messages_are_read_one_after_another() -> None:
    assert list(parse_messages(message(b"abcde", kind=16) + message(b"", kind=3, flags=2))) == [
        (16, 0, 7, b"abcde"),
        (3, 2, 7, b""),
    ]


@pytest.mark.parametrize(
    "data",
    [b"\1\2\3", message(b"", length=15), message(b"", length=17), message(b"abcd", length=0)],
    ids=["cut header", "shorter than its header", "longer than the rest", "empty"],
)
def test_messages_whose_lengths_do_not_add_up_are_an_error(data: bytes) -> None:
    with pytest.raises(OSError, match="the kernel's answer is malformed"):
        list(parse_messages(data))


@pytest.mark.parametrize(
    ("flags", "body", "expected"),
    [
        (0, struct.pack("=i", 0) + HEADER.pack(16, 16, 5, 7, 0), (0, "")),
        (0, struct.pack("=i", -17) + HEADER.pack(36, 16, 5, 7, 0) + bytes(20), (17, "")),
        (
            0x300,
            struct.pack("=i", -22) + HEADER.pack(99, 16, 5, 7, 0) + text(1, "mtu too large"),
            (22, "mtu too large"),
        ),
        (
            0x200,
            struct.pack("=i", -22) + HEADER.pack(18, 16, 5, 7, 0) + b"ab\0\0" + text(1, "why"),
            (22, "why"),
        ),
    ],
    ids=["good", "with its request", "explained", "explained, with its request"],
)
def test_an_acknowledgement_is_an_errno_and_the_kernels_words(
    flags: int, body: bytes, expected: tuple[int, str]
) -> None:
    assert parse_error(flags, body) == expected


def test_a_short_acknowledgement_is_an_error() -> None:
    with pytest.raises(OSError, match="an acknowledgement has 19 bytes"):
        parse_error(0, bytes(19))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a:b", "a b", "eth%d", "a\0", "sixteen-letters!"]
)
def test_a_name_that_the_kernel_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name of an interface"):
        check_link_name(name)
