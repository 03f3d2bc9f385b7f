"""IP addresses as the kernel has them: 4 or 16 bytes, the first byte first.

``ipaddress`` would cost a container's start 6 ms, and the length says the family just as well.
"""

from __future__ import annotations

_HEX = frozenset("0123456789abcdefABCDEF")


def parse_address(text: str) -> bytes:
    """The address that ``10.0.0.1`` or ``fd00::1`` means. Raises ValueError."""
    return _parse_v6(text) if ":" in text else _parse_v4(text)


def _parse_v4(text: str) -> bytes:
    parts = text.split(".")
    for part in parts:
        # A leading zero is octal to some programs and decimal to others.
        if not (part.isascii() and part.isdigit()) or len(part) > len(str(int(part))):
            raise ValueError(f"{text!r} is not an address")
    if len(parts) != 4 or max(map(int, parts)) > 255:
        raise ValueError(f"{text!r} is not an address")
    return bytes(map(int, parts))


def _parse_v6(text: str) -> bytes:
    head, gap, tail = text.partition("::")
    first, last = _groups(head, text, may_be_dotted=not gap), _groups(tail, text)
    missing = 16 - len(first) - len(last)
    if missing < 2 if gap else missing:
        raise ValueError(f"{text!r} is not an address")
    return first + bytes(missing) + last


def _groups(part: str, text: str, *, may_be_dotted: bool = True) -> bytes:
    groups = part.split(":") if part else []
    packed = b""
    for number, group in enumerate(groups):
        if may_be_dotted and "." in group and number == len(groups) - 1:
            packed += _parse_v4(group)
        elif 0 < len(group) <= 4 and _HEX.issuperset(group):
            packed += int(group, 16).to_bytes(2, "big")
        else:
            raise ValueError(f"{text!r} is not an address")
    return packed


def format_address(address: bytes) -> str:
    """The address as users write it; IPv6 as RFC 5952 has it."""
    if len(address) == 4:
        return ".".join(map(str, address))
    groups = [f"{int.from_bytes(address[at : at + 2], 'big'):x}" for at in range(0, 16, 2)]
    start, length = _longest_zeros(groups)
    if length < 2:
        return ":".join(groups)
    return ":".join(groups[:start]) + "::" + ":".join(groups[start + length :])


def _longest_zeros(groups: list[str]) -> tuple[int, int]:
    best = (0, 0)
    for start in range(8):
        end = start
        while end < 8 and groups[end] == "0":
            end += 1
        if end - start > best[1]:
            best = (start, end - start)
    return best
