"""PAX extended headers (POSIX.1-2017, pax(1), "pax Extended Header"): records to values and back.

A record is ``<length> <key>=<value>\\n``, the decimal length counting the whole record.
"""

from __future__ import annotations

from collections.abc import Iterable

from layerstore.formats.entries import NANOSECOND


class PaxError(ValueError):
    """The bytes are no PAX records."""


_NO_NUL = (b"path", b"linkpath", b"uname", b"gname")


def parse(raw: bytes) -> list[tuple[bytes, bytes]]:
    """The records in their order, repeated keys included. Strict as Go's parsePAXRecord."""
    records: list[tuple[bytes, bytes]] = []
    position = 0
    end = len(raw)
    while position < end:
        space = raw.find(b" ", position, position + 21)
        digits = raw[position:space]
        if space < 0 or not digits.isdigit():
            raise PaxError("a PAX record without a length")
        stop = position + int(digits)
        if stop > end or stop <= space + 1 or raw[stop - 1] != 0x0A:
            raise PaxError("a PAX record whose length is wrong")
        key, equals, value = raw[space + 1 : stop - 1].partition(b"=")
        if not equals or not key or b"\0" in (value if key in _NO_NUL else key):
            raise PaxError("a malformed PAX record")
        records.append((key, value))
        position = stop
    return records


def emit(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The records, in the order given."""
    out = []
    for key, value in records:
        body = len(key) + len(value) + 3
        size = body + len(str(body))
        if len(str(size)) != len(str(body)):
            size = body + len(str(size))
        out.append(b"%d %s=%s\n" % (size, key, value))
    return b"".join(out)


def parse_number(text: bytes) -> int:
    """A decimal integer, negative ones included, in the range of int64."""
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    if not digits.isdigit() or len(digits) > 19:
        raise PaxError(f"{text!r} is no number")
    value = int(text)
    if not -(1 << 63) <= value < 1 << 63:
        raise PaxError(f"{text!r} is out of range")
    return value


def parse_time(text: bytes) -> int:
    """Nanoseconds of ``[-]seconds[.fraction]``; digits beyond nanoseconds are dropped."""
    whole, point, fraction = text.partition(b".")
    seconds = parse_number(whole)
    if point and not fraction.isdigit() and fraction:
        raise PaxError(f"{text!r} is no time")
    nanoseconds = int(fraction[:9].ljust(9, b"0")) if fraction else 0
    if whole.startswith(b"-"):
        nanoseconds = -nanoseconds
    return seconds * NANOSECOND + nanoseconds
