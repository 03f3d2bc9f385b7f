"""Text that is safe to print and easy to read: names, sizes, ages, tables.

Names that come from images and containers are hostile input. What is printed has no control
characters, escape sequences or bidirectional marks, and no bytes that are no text.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SPANS = ((60, "second"), (60, "minute"), (24, "hour"), (7, "day"), (52, "week"))


def escaped(text: str, *, but: str = "") -> str:
    r"""The text with everything that does not print as itself replaced, as in ``\x1b``.

    Bytes that are no UTF-8 (surrogates) become ``\xff``. ``but``: characters to leave alone.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in but else _escape(char) for char in text)


def shown(name: bytes) -> str:
    """A name or path as it can be printed."""
    return escaped(name.decode("utf-8", "surrogateescape"))


def _escape(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def size(count: int) -> str:
    """Bytes in decimal units: ``999 B``, ``1.20 kB``, ``12.3 MB``, ``934.1 MB``."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    unit = 0
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.{2 if value < 9.995 else 1}f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """``0.4s``, ``12.0s``, ``3m05s``, ``1h02m``."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def span(seconds: float) -> str:
    """A length of time in its largest unit: ``3 minutes``, ``1 day``, ``2 years``."""
    count, name = max(0, int(seconds)), "second"
    for limit, unit in _SPANS:
        name = unit
        if count < limit:
            break
        count //= limit
    else:
        name = "year"
    return f"{count} {name}" + ("" if count == 1 else "s")


def age(created: str | None, now: float) -> str:
    """How long ago an RFC 3339 time was: ``3 minutes ago``.

    ``-`` if it is none, or the epoch, which is what reproducible builds say instead of a time.
    """
    then = seconds_of(created)
    return "-" if not then else f"{span(now - then)} ago"


def seconds_of(moment: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; None for what is none."""
    if not moment:
        return None
    from datetime import UTC, datetime

    try:
        parsed = datetime.fromisoformat(moment)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def width(text: str) -> int:
    """Columns on a terminal, of text that is escaped."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 1 + (east_asian_width(char) in "WF") for char in text)


def clipped(text: str, columns: int | None) -> str:
    """The text, or its beginning and an ellipsis, in so many columns; None: as it is."""
    if columns is None or width(text) <= columns:
        return text
    kept = text[: max(0, columns - 1)]
    while kept and width(kept) > columns - 1:
        kept = kept[:-1]
    return kept + "…"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "") -> str:
    """Lines with aligned columns; the cells are escaped here.

    ``right``: one letter a column, ``r`` for those that are aligned to the right.
    """
    lines = [[escaped(cell) for cell in row] for row in (head, *rows)]
    widths = [max(width(row[column]) for row in lines) for column in range(len(head))]
    sides = right.ljust(len(head), "l")
    return "\n".join(
        "   ".join(
            " " * (room - width(cell)) + cell if side == "r" else cell + " " * (room - width(cell))
            for cell, room, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in lines
    )


def timestamp(ns: int) -> str:
    """RFC 3339 of nanoseconds since the epoch; seconds have a fraction only if there is one."""
    from time import gmtime

    seconds, fraction = divmod(ns, 1_000_000_000)
    try:
        year, month, day, hour, minute, second = gmtime(seconds)[:6]
    except (OverflowError, OSError, ValueError):
        return f"@{seconds}"
    point = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}{point}Z"
