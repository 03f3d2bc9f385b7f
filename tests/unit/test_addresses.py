"""Addresses, judged by the standard library."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.kernel.addresses import format_address, parse_address

addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
sparse = st.lists(st.sampled_from([b"\0\0", b"\0\1", b"\xfd\0"]), min_size=8, max_size=8)


@given(addresses | sparse.map(b"".join))
def test_an_address_is_written_as_the_standard_library_writes_it(packed: bytes) -> None:
    theirs = ipaddress.ip_address(packed)
    shown = format_address(packed)
    if packed[:12] == bytes(10) + b"\xff\xff":  # which some versions write as dotted
        assert ipaddress.ip_address(shown) == theirs
    else:
        assert shown == str(theirs)
    assert parse_address(shown) == packed


@given(st.text(alphabet="0123456789abcdefF:.", max_size=24))
def test_what_the_standard_library_takes_is_taken_and_nothing_else(text: str) -> None:
    try:
        expected = ipaddress.ip_address(text).packed
    except ValueError:
        with pytest.raises(ValueError, match="is not an address"):
            parse_address(text)
    else:
        assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ".", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.04", "1.2.3.-4", "1.2.3.٤", ":", ":::",
     "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7::8", "12345::", "fe80::1%eth0",
     "::1.2.3", "1.2.3.4::", "::g"],
)  # fmt: skip
def test_a_malformed_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        parse_address(text)
