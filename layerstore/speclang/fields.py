"""Nodes → plain values: the fields of a mapping, and readers for what stands in them.

A reader that finds a mistake records it in the document and gives a placeholder. Nobody sees
that: parsing ends with an error if there was any mistake. So one pass finds all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from difflib import get_close_matches
from functools import partial
from typing import TypeVar

from layerstore.names import Digest, ImageRef, MalformedName
from layerstore.speclang.document import (
    Document,
    Listing,
    Node,
    Scalar,
    Span,
    Table,
    kind_of,
    quote,
)
from layerstore.speclang.model import ROOT, Command, Mode, Owner, Pairs

T = TypeVar("T")
D = TypeVar("D")
Reader = Callable[[Document, Node, str], T]

MAX_TEXT = 1 << 20
"""Characters of a value with its variables written out."""


def did_you_mean(word: str, known: tuple[str, ...]) -> str | None:
    """A hint for a word that is none of the known ones."""
    close = get_close_matches(word.lower(), known, 1)
    if close:
        return f"did you mean {quote(close[0])}?"
    return f"use one of {', '.join(known)}" if 0 < len(known) <= 12 else None


class Fields:
    """The values of a mapping by key; unknown and duplicate keys are reported at once.

    ``elsewhere`` gives hints for keys that have their place somewhere else.
    """

    def __init__(
        self,
        document: Document,
        node: Node,
        where: str,
        known: tuple[str, ...],
        *,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self._document = document
        self._where = where
        self._values: dict[str, tuple[Scalar, Node]] = {}
        self.span = node.span
        self._meant: set[str] = set()
        self.is_broken = not isinstance(node, Table)
        if not isinstance(node, Table):
            document.error(node.span, f"expected a mapping, got {kind_of(node)}", where)
            return
        for key, value in document.pairs(node, where):
            if key.text in known:
                self._values[key.text] = (key, value)
                continue
            self._meant.update(get_close_matches(key.text.lower(), known, 1))
            hint = (elsewhere or {}).get(key.text) or did_you_mean(key.text, known)
            if key.text == "<<":
                hint = "merging is not part of a spec; write the keys out"
            document.error(key.span, f"unknown key {quote(key.text)}", where, hint)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def is_meant(self, key: str) -> bool:
        """Whether a mistake that has been reported may be the lack of this key."""
        return self.is_broken or key in self._meant

    def key(self, key: str) -> Span:
        return self._values[key][0].span

    def node(self, key: str) -> Node:
        return self._values[key][1]

    def need(self, key: str, read: Reader[T], placeholder: D) -> T | D:
        """The value of a key that must be there."""
        if key not in self._values:
            if not self.is_meant(key):
                self._document.error(self.span, f"missing key {quote(key)}", self._where)
            return placeholder
        return self.get(key, read, placeholder)

    def get(self, key: str, read: Reader[T], default: D) -> T | D:
        if key not in self._values:
            return default
        return read(self._document, self._values[key][1], below(self._where, key))


def kind_in(
    document: Document,
    node: Node,
    where: str,
    kinds: tuple[str, ...],
    others: tuple[str, ...],
    noun: str,
) -> str | None:
    """The one key of the mapping that says what it is; None if there is no such, reported."""
    if not isinstance(node, Table):
        message = f"expected {noun}, got {kind_of(node)}"
        document.error(node.span, message, where, f"write one key of {', '.join(kinds)}")
        return None
    found = {key.text: key for key, _ in reversed(node.pairs) if key.text in kinds}
    if len(found) == 1:
        return next(iter(found))
    if found:
        first, second = sorted(found.values(), key=lambda key: key.span.start)[:2]
        message = f"{quote(second.text)} beside {quote(first.text)}"
        document.error(second.span, message, where, f"{noun} has only one of them")
        return None
    unknown = [key for key, _ in node.pairs if key.text not in others]
    for key in unknown:
        hint = did_you_mean(key.text, kinds + others)
        document.error(key.span, f"unknown key {quote(key.text)}", where, hint)
    if not unknown:
        message = f"{noun} needs one key of {', '.join(kinds)}"
        document.error(node.span, message, where)
    return None


_PLAIN_KEY = re.compile(r"[\w./-]{1,60}\Z")


def below(where: str, key: str) -> str:
    shown = key if _PLAIN_KEY.match(key) else quote(key)
    return f"{where}.{shown}" if where else shown


# Text and variables

_VARIABLE = re.compile(r"\$\$\{|\$\{([^}\n]*)\}?")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def expand(document: Document, scalar: Scalar, where: str) -> str | None:
    """The text with ``${name}`` replaced and ``$${`` made ``${``; None after a mistake in it."""
    if "${" not in scalar.text:
        return scalar.text
    is_good = True
    search_from = scalar.span.start

    def value_of(match: re.Match[str]) -> str:
        nonlocal is_good, search_from
        if match[0] == "$${":
            return "${"
        # An escape in the YAML may hide the reference; then the whole value is pointed at.
        at = document.text.find(match[0], search_from, scalar.span.end)
        span = scalar.span
        if at >= 0:
            span, search_from = Span(at, at + len(match[0])), at + len(match[0])
        name = match[1]
        if not match[0].endswith("}") or not VARIABLE_NAME.match(name):
            message, hint = f"{quote(match[0])} is not a variable", 'write "$${" for a literal "${"'
            document.error(span, message, where, hint)
        elif name not in document.variables:
            message, hint = f"undefined variable {quote(name)}", _undefined_hint(document, name)
            document.error(span, message, where, hint)
        else:
            value = document.variables[name]
            is_good = is_good and value is not None
            return value or ""
        is_good = False
        return ""

    text = _VARIABLE.sub(value_of, scalar.text)
    if is_good and len(text) > MAX_TEXT:
        document.error(scalar.span, f"{len(text)} characters with its variables written out", where)
        return None
    return text if is_good else None


def _undefined_hint(document: Document, name: str) -> str:
    close = get_close_matches(name, document.variables, 1)
    if close:
        return f"did you mean {quote(close[0])}?"
    return 'declare it in vars, or write "$${" for a literal "${"'


def _text_of(
    document: Document, node: Node, where: str, expected: str, *, is_script: bool = False
) -> str | None:
    """The expanded text of a scalar; None if there is none, which has been reported."""
    if not isinstance(node, Scalar) or node.is_empty:
        is_blank = expected == "text" and isinstance(node, Scalar)
        hint = 'write "" for an empty text' if is_blank else None
        document.error(node.span, f"expected {expected}, got {kind_of(node)}", where, hint)
        return None
    return node.text if is_script else expand(document, node, where)


def any_text(document: Document, node: Node, where: str) -> str:
    return _text_of(document, node, where, "text") or ""


def parsed(
    document: Document,
    node: Node,
    where: str,
    *,
    what: str,
    parse: Callable[[str], T | None],
    placeholder: T,
    hint: str | Callable[[str], str],
) -> T:
    """What ``parse`` makes of the text; its None is a mistake: the text is not ``what``."""
    text = _text_of(document, node, where, what)
    if text is None:
        return placeholder
    value = parse(text)
    if value is None:
        advice = hint if isinstance(hint, str) else hint(text)
        document.error(node.span, f"{quote(text)} is not {what}", where, advice)
        return placeholder
    return value


def matching(pattern: str, what: str, hint: str) -> Reader[str]:
    """A reader of text that the whole pattern matches."""
    compiled = re.compile(pattern)
    return partial(
        parsed,
        what=what,
        parse=lambda text: text if compiled.fullmatch(text) else None,
        placeholder="",
        hint=hint,
    )


def choice(what: str, known: tuple[str, ...]) -> Reader[str]:
    return partial(
        parsed,
        what=what,
        parse=lambda text: text if text in known else None,
        placeholder=known[0],
        hint=lambda text: did_you_mean(text, known) or f"use one of {', '.join(known)}",
    )


# Lists and mappings of text


def items_of(
    document: Document, node: Node, where: str, what: str, *, may_be_empty: bool = False
) -> tuple[Node, ...]:
    if not isinstance(node, Listing):
        message = f"expected a list of {what}, got {kind_of(node)}"
        document.error(node.span, message, where, _list_hint(node))
        return ()
    if not node.items and not may_be_empty:
        document.error(node.span, f"the list of {what} is empty", where)
    return node.items


def list_of(read: Reader[T], what: str, *, may_be_empty: bool = False) -> Reader[tuple[T, ...]]:
    def read_list(document: Document, node: Node, where: str) -> tuple[T, ...]:
        items = items_of(document, node, where, what, may_be_empty=may_be_empty)
        return tuple(read(document, item, f"{where}[{at}]") for at, item in enumerate(items))

    return read_list


def _list_hint(node: Node) -> str | None:
    if isinstance(node, Scalar) and re.fullmatch(r"[\w ./+=@-]{1,60}", node.text):
        return f"write it as a list: [{', '.join(node.text.split())}]"
    return None


def one_or_more(read: Reader[T], one: str, many: str) -> Reader[tuple[T, ...]]:
    """A reader of one value or a list of them."""
    several = list_of(read, many)

    def read_either(document: Document, node: Node, where: str) -> tuple[T, ...]:
        if isinstance(node, Listing):
            return several(document, node, where)
        if isinstance(node, Table) or node.is_empty:
            message = f"expected {one} or a list of {many}, got {kind_of(node)}"
            document.error(node.span, message, where)
            return ()
        return (read(document, node, where),)

    return read_either


def pairs_of(
    pattern: str, what: str, read: Reader[T], hint: str
) -> Reader[tuple[tuple[str, T], ...]]:
    """A reader of a mapping whose keys are names that the pattern matches."""
    compiled = re.compile(pattern)

    def read_pairs(document: Document, node: Node, where: str) -> tuple[tuple[str, T], ...]:
        if not isinstance(node, Table):
            document.error(node.span, f"expected a mapping, got {kind_of(node)}", where)
            return ()
        found: list[tuple[str, T]] = []
        for key, value in document.pairs(node, where):
            if not compiled.fullmatch(key.text):
                document.error(key.span, f"{quote(key.text)} is not {what}", where, hint)
            found.append((key.text, read(document, value, below(where, key.text))))
        return tuple(found)

    return read_pairs


read_env: Reader[Pairs] = pairs_of(
    r"[^=\s]+", "the name of a variable", any_text, "leave out spaces and ="
)


def one_line(document: Document, node: Node, where: str) -> str:
    return _LINE(document, node, where)


_LINE = matching(r"[^\r\n]+", "one line of text", "write it on one line")
words = list_of(any_text, "words")
words_or_none = list_of(any_text, "words", may_be_empty=True)


def command(document: Document, node: Node, where: str) -> Command:
    """A script, whose text is taken as it is, or a list of words."""
    if isinstance(node, Listing):
        first = node.items[0] if node.items else None
        if isinstance(first, Scalar) and not first.text and not first.is_empty:
            document.error(first.span, "the name of the program is empty", where)
        return Command(None, words(document, node, where))
    expected = "a script or a list of words"
    script = _text_of(document, node, where, expected, is_script=True)
    if script is not None and not script.strip():
        document.error(node.span, "the script is empty", where)
    return Command(script or "")


# Paths


def _components(text: str) -> list[str]:
    return [part for part in text.split("/") if part not in ("", ".")]


def parse_image_path(text: str) -> bytes | None:
    parts = _components(text)
    if not text.startswith("/") or ".." in parts or _hidden(parts):
        return None
    return "/".join(parts).encode(errors="surrogateescape")


def _hidden(parts: list[str]) -> bool:
    return any(part.startswith(".wh.") for part in parts)


def parse_folder_path(text: str) -> bytes | None:
    parts = _components(text)
    if not text or text.startswith("/") or ".." in parts:
        return None
    return "/".join(parts).encode(errors="surrogateescape") or b"."


def folder_path_hint(text: str) -> str:
    if text.startswith("/"):
        return "paths are relative to the spec's folder; leave out the leading /"
    return "nothing outside the spec's folder can be read; put the file into it"


def image_path_hint(text: str) -> str:
    if ".." in _components(text):
        return "write it without .."
    if _hidden(_components(text)):
        return "layers cannot hold names that begin with .wh."
    if text.startswith("/"):
        return "name something below the root directory"
    return f"begin it with /: {quote('/' + text)}"


image_path: Reader[bytes] = partial(
    parsed,
    what="an absolute path of the image",
    parse=parse_image_path,
    placeholder=b"",
    hint=image_path_hint,
)
folder_path: Reader[bytes] = partial(
    parsed,
    what="a path in the spec's folder",
    parse=parse_folder_path,
    placeholder=b".",
    hint=folder_path_hint,
)


image_path_below_root: Reader[bytes] = partial(
    parsed,
    what="an absolute path below the image's root",
    parse=lambda text: parse_image_path(text) or None,
    placeholder=b"",
    hint=image_path_hint,
)


# Single values

_UNITS = {
    "": 1, "B": 1,
    "K": 1 << 10, "KiB": 1 << 10, "kB": 10**3, "KB": 10**3,
    "M": 1 << 20, "MiB": 1 << 20, "MB": 10**6,
    "G": 1 << 30, "GiB": 1 << 30, "GB": 10**9,
    "T": 1 << 40, "TiB": 1 << 40, "TB": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,6}))? ?([A-Za-z]*)")
_DURATION = re.compile(
    r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6}(?:\.[0-9]{1,9})?)s)?(?:([0-9]{1,9})ms)?"
)


def parse_size(text: str) -> int | None:
    """Bytes: ``80MiB`` (or ``80M``) is 80 · 2^20, ``80MB`` is 80 · 10^6."""
    match = _SIZE.fullmatch(text)
    if match is None or match[3] not in _UNITS:
        return None
    unit = _UNITS[match[3]]
    fraction = match[2] or ""
    size = int(match[1]) * unit + int(fraction or 0) * unit // 10 ** len(fraction)
    return size if 0 < size < 1 << 63 else None


def parse_duration(text: str) -> float | None:
    """Seconds: ``500ms``, ``30s``, ``1m30s``, ``2h``."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _parse_time(text: str) -> int | None:
    if re.fullmatch(r"[0-9]{1,12}", text):
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if when.tzinfo is None else int(when.timestamp())


def _exact_mode_hint(text: str) -> str:
    digits = text.removeprefix("0o")
    if re.fullmatch(r"[0-7]{3,4}", digits):
        return f"write it with a leading zero: {quote('0' + digits.lstrip('0').rjust(3, '0'))}"
    return 'write an octal mode such as "0644"'


def mode_hint(text: str) -> str:
    hint = _exact_mode_hint(text)
    is_octal = re.fullmatch(r"[0-9o]+", text) is not None
    return hint if is_octal else hint + ', or a symbolic one such as "u=rwX,go=rX"'


def _parse_exact_mode(text: str) -> int | None:
    mode = Mode.parse(text)
    return mode.exact if mode is not None else None


def _user(text: str) -> str | None:
    return text if Owner.parse(text) is not None else None


size: Reader[int] = partial(
    parsed, what="a size", parse=parse_size, placeholder=0,
    hint="write a number with a unit, such as 80MiB, 64kB or 2GiB",
)  # fmt: skip
duration: Reader[float] = partial(
    parsed, what="a duration", parse=parse_duration, placeholder=0.0,
    hint="write it with units, such as 500ms, 30s, 1m30s or 2h",
)  # fmt: skip
time: Reader[int] = partial(
    parsed, what="a time", parse=_parse_time, placeholder=0,
    hint="write seconds since 1970, or a time with its zone such as 2024-01-31T12:00:00Z",
)  # fmt: skip
mode: Reader[Mode] = partial(
    parsed, what="a mode", parse=Mode.parse, placeholder=Mode("0644", exact=0o644), hint=mode_hint
)
exact_mode: Reader[int] = partial(
    parsed, what="an octal mode", parse=_parse_exact_mode, placeholder=0o644, hint=_exact_mode_hint
)
owner: Reader[Owner] = partial(
    parsed, what="an owner", parse=Owner.parse, placeholder=ROOT,
    hint='write user or user:group, each a name or a number, such as "1000:1000"',
)  # fmt: skip
user: Reader[str] = partial(
    parsed, what="a user", parse=_user, placeholder="0",
    hint='write user or user:group, each a name or a number, such as "1000:1000"',
)  # fmt: skip
truth: Reader[bool] = partial(
    parsed, what='"true" or "false"', placeholder=False, hint="write true or false",
    parse={"true": True, "false": False}.get,
)  # fmt: skip


def count(low: int, high: int) -> Reader[int]:
    def parse(text: str) -> int | None:
        good = re.fullmatch(r"[0-9]{1,9}", text) and low <= int(text) <= high
        return int(text) if good else None

    what = f"a number from {low} to {high}"
    return partial(parsed, what=what, parse=parse, placeholder=low, hint="write it in digits")


def sha256(document: Document, node: Node, where: str) -> Digest | None:
    hexadecimal = _SHA256(document, node, where)
    return Digest("sha256:" + hexadecimal.removeprefix("sha256:")) if hexadecimal else None


_SHA256 = matching(
    r"(sha256:)?[0-9a-f]{64}", "a sha256", "write its 64 lowercase hex digits, as sha256sum does"
)


def image_ref(document: Document, node: Node, where: str) -> ImageRef | None:
    text = _text_of(document, node, where, "the name of an image")
    if text is None:
        return None
    try:
        return ImageRef.parse(text)
    except MalformedName as error:
        document.error(node.span, f"{quote(text)} is not an image name", where, error.hint)
        return None
