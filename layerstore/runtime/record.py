"""Values as JSON text, and back: what a launcher hands to another process, now or later.

``json`` costs 8 ms to import, its C scanner nothing. Bytes are ``{"bytes": text}``, undecodable
ones as lone surrogates; a frozenset is ``{"set": […]}``; a Value is ``{"class": its name, …}``.
Paths come back as ``str``, since ``pathlib`` costs 6 ms.
"""

from __future__ import annotations

import _json
import os

from layerstore.errors import FormatError
from layerstore.kernel.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def emit(value: object) -> str:
    """The text of a value made of Values, tuples, frozensets, bytes, paths and JSON's own."""
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bytes):
        return '{"bytes": ' + quoted(value.decode("utf-8", "surrogateescape")) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join([emit(item) for item in value]) + "]"
    if isinstance(value, frozenset):
        return '{"set": ' + emit(tuple(sorted(value))) + "}"
    if isinstance(value, os.PathLike):
        return quoted(os.fspath(value))
    if isinstance(value, Value):
        pairs = [f", {quoted(name)}: {emit(getattr(value, name))}" for name in value._fields]
        return '{"class": ' + quoted(type(value).__name__) + "".join(pairs) + "}"
    raise TypeError(f"{type(value).__name__} has no text")


def quoted(text: str) -> str:
    """A JSON string."""
    return _json.encode_basestring_ascii(text)


def parse(text: str) -> object:
    """The value; its classes must be imported. Raises FormatError."""
    try:
        return _value(scan(text), _kinds(Value))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(f"a record cannot be read: {type(error).__name__}: {error}") from None


# Any: JSON values as they come.
def scan(text: str) -> Any:
    """A JSON document that fills the text. Raises ValueError."""
    try:
        document, end = _json.make_scanner(_Scan())(text, 0)  # type: ignore[arg-type]
    except StopIteration:
        raise ValueError("the text is not JSON") from None
    if text[end:].strip():
        raise ValueError("text follows the document")
    return document


class _Scan:
    """The settings of ``json``'s C scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner's own, empty between uses


def _kinds(base: type[Value]) -> dict[str, type[Value]]:
    found = {}
    for kind in base.__subclasses__():
        found[kind.__name__] = kind
        found |= _kinds(kind)
    return found


def _value(document: object, kinds: dict[str, type[Value]]) -> object:
    if isinstance(document, list):
        return tuple([_value(item, kinds) for item in document])
    if not isinstance(document, dict):
        return document
    if "bytes" in document:
        text: str = document["bytes"]
        return text.encode("utf-8", "surrogateescape")
    if "set" in document:
        return frozenset([_value(item, kinds) for item in document["set"]])
    kind = kinds[document.pop("class")]
    return kind(**{name: _value(item, kinds) for name, item in document.items()})
