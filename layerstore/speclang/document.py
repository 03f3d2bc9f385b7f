"""YAML bytes → nodes with positions, and the mistakes found in them.

Every scalar stays the text that it is: no booleans, numbers, dates or nulls. Anchors and aliases
work within bounds; tags, merge keys and a second document are refused.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import yaml

from layerstore.errors import UsageError
from layerstore.speclang.model import Position

MAX_BYTES = 1 << 20
MAX_NODES = 50_000
"""Nodes of a document with every alias written out: a chain of aliases doubles at each link."""
MAX_DEPTH = 40
MAX_MISTAKES = 100
"""After so many the file is read no further."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
# What YAML 1.1 (section 5.1) does not call printable, less the surrogates: UTF-8 has none. The
# byte order mark may only start a file. Alternatives, since one wide set takes 5 ms to compile.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]|\ufeff|\ufffe|\uffff")
_SNIPPET = 100
_ESCAPE_HINT = 'write "\\\\" for a backslash'
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"


class Span(NamedTuple):
    """From ``start`` to before ``end``, in characters of the text."""

    start: int
    end: int


class Scalar(NamedTuple):
    text: str
    span: Span
    is_empty: bool
    """Nothing is written: not even an empty pair of quotes."""


class Listing(NamedTuple):
    items: tuple[Node, ...]
    span: Span


class Table(NamedTuple):
    """Keys may repeat: ``Document.pairs`` reports that."""

    pairs: tuple[tuple[Scalar, Node], ...]
    span: Span


Node = Scalar | Listing | Table


def kind_of(node: Node) -> str:
    if isinstance(node, Scalar):
        return "nothing" if node.is_empty else "text"
    return "a list" if isinstance(node, Listing) else "a mapping"


def is_clean(text: str) -> bool:
    """Whether it can be the name of a file and be written as UTF-8."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def quote(text: str) -> str:
    """The text in double quotes, on one line, clipped, harmless to a terminal."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text[:61]
    )
    return f'"{shown if len(text) <= 60 else shown[:60] + "…"}"'


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake. Lines and columns count from 1; line 0 is for what stands in no file.

    ``where`` is the path to the place in the document, ``width`` the length of the wrong text in
    columns, ``snippet`` its whole line.
    """

    line: int
    column: int
    message: str
    where: str = ""
    hint: str | None = None
    snippet: str = ""
    width: int = 1

    def render(self, filename: str) -> str:
        position = f"{filename}:{self.line}:{self.column}" if self.line else filename
        text = f"{position}: error: {self.message}"
        if self.where:
            text += f" in {self.where}"
        if self.hint:
            text += f"; {self.hint}"
        if self.line and self.snippet.strip():
            text += "\n" + self._excerpt()
        return text

    def _excerpt(self) -> str:
        """The line and a caret below, clipped around the mistake when the line is long."""
        at = self.column - 1
        first = max(0, at - _SNIPPET // 2) if len(self.snippet) > _SNIPPET else 0
        shown = self.snippet[first : first + _SNIPPET]
        before = shown[: at - first]
        caret = "^" * max(1, _columns(shown[at - first : at - first + self.width]))
        lead = "…" if first else ""
        tail = "…" if first + _SNIPPET < len(self.snippet) else ""
        margin = " " * len(str(self.line))
        blank = "".join("\t" if char == "\t" else " " * _columns(char) for char in lead + before)
        return f"{self.line} | {lead}{shown}{tail}\n{margin} | {blank}{caret}"


def _columns(text: str) -> int:
    """Columns on a terminal."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


class SpecError(UsageError):
    """The spec is wrong: every mistake of the file, in its order."""

    def __init__(self, filename: str, diagnostics: list[Diagnostic]) -> None:
        ordered = sorted(diagnostics, key=lambda diagnostic: (diagnostic.line, diagnostic.column))
        super().__init__("\n".join(diagnostic.render(filename) for diagnostic in ordered))
        self.filename = filename
        self.diagnostics = tuple(ordered)


class Document:
    """One file's text and the mistakes found so far."""

    def __init__(self, filename: str, text: str) -> None:
        self.filename = filename
        self.text = text
        self.diagnostics: list[Diagnostic] = []
        self.variables: dict[str, str | None] = {}
        """None: declared, but its value is missing or wrong, which has been reported."""
        self._starts = [0, *(match.end() for match in _BREAK.finditer(text))]

    def position(self, span: Span) -> Position:
        line = bisect_right(self._starts, span.start)
        return Position(self.filename, line, span.start - self._starts[line - 1] + 1)

    def error(self, span: Span, message: str, where: str = "", hint: str | None = None) -> None:
        """Record a mistake. A place that is reached twice, through an alias, counts once."""
        position = self.position(span)
        start = self._starts[position.line - 1]
        end = _BREAK.search(self.text, start)
        snippet = self.text[start : end.start() if end else len(self.text)]
        width = min(span.end - span.start, len(snippet.rstrip()) - position.column + 1)
        found = Diagnostic(
            position.line, position.column, message, where, hint, snippet, max(1, width)
        )
        if not any(
            (known.line, known.column, known.message) == (found.line, found.column, message)
            for known in self.diagnostics
        ):
            self.diagnostics.append(found)
        if len(self.diagnostics) >= MAX_MISTAKES:
            self.check()

    def error_outside(self, message: str, hint: str | None = None) -> None:
        """Record a mistake that is not in the file."""
        self.diagnostics.append(Diagnostic(0, 0, message, hint=hint))

    def check(self) -> None:
        """Raises SpecError if there are mistakes."""
        if self.diagnostics:
            raise SpecError(self.filename, self.diagnostics)

    def pairs(self, table: Table, where: str) -> Iterator[tuple[Scalar, Node]]:
        """The pairs of a table without the repeated keys, which are mistakes."""
        lines: dict[str, int] = {}
        for key, value in table.pairs:
            if key.text in lines:
                self.error(
                    key.span,
                    f"duplicate key {quote(key.text)}",
                    where,
                    f"it is already on line {lines[key.text]}",
                )
                continue
            lines[key.text] = self.position(key.span).line
            yield key, value


def load(raw: bytes, *, filename: str) -> tuple[Document, Node]:
    """The document and its top node. Raises SpecError where no further reading makes sense."""
    document = Document(filename, _decode(raw, filename))
    bad = _FORBIDDEN.search(document.text)
    if bad is not None:
        document.error(
            Span(bad.start(), bad.end()),
            f"control character U+{ord(bad[0]):04X}",
            hint='write it as an escape inside double quotes, such as "\\x1b"',
        )
        document.check()
    try:
        top = _Composer(document).compose()
    except yaml.MarkedYAMLError as error:
        _explain(document, error)
        document.check()
        raise
    except ValueError:
        # chr() in PyYAML's own parser, beyond the last character of Unicode.
        bad = re.search(r"\\U(?!000|0010)[0-9A-Fa-f]{8}", document.text)
        span = Span(bad.start(), bad.end()) if bad else Span(0, 0)
        document.error(span, "unknown escape in double quotes", hint=_ESCAPE_HINT)
        document.check()
        raise
    return document, top


def _decode(raw: bytes, filename: str) -> str:
    if len(raw) > MAX_BYTES:
        message = f"the file has {len(raw)} bytes, and a spec has at most {MAX_BYTES}"
        raise SpecError(filename, [Diagnostic(0, 0, message)])
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        document = Document(filename, before)
        position = document.position(Span(len(before), len(before)))
        message = f"the byte 0x{raw[error.start]:02x} is not UTF-8"
        found = Diagnostic(position.line, position.column, message, hint="save the file as UTF-8")
        raise SpecError(filename, [found]) from None


class _Composer:
    """Builds nodes from the parser's events, which carry positions and never recurse."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._events: Iterator[yaml.Event] = yaml.parse(document.text, Loader=_LOADER)
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._open: set[str] = set()
        self._count = 0

    def compose(self) -> Node:
        next(self._events)  # StreamStart
        if isinstance(next(self._events), yaml.StreamEndEvent):
            self._fail(Span(0, 0), "the file is empty", 'start it with "layerstore: 1"')
        top = self._node(next(self._events), 0)
        next(self._events)  # DocumentEnd
        event = next(self._events)
        if isinstance(event, yaml.DocumentStartEvent):
            self._fail(_span(event), "a second document begins here", "put it in a file of its own")
        return top

    def _fail(self, span: Span, message: str, hint: str | None = None) -> None:
        self._document.error(span, message, hint=hint)
        self._document.check()

    def _node(self, event: yaml.Event, depth: int) -> Node:
        span = _span(event)
        if depth > MAX_DEPTH:
            self._fail(span, _TOO_DEEP)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, span)
        self._count += 1
        self._bound(span)
        if getattr(event, "tag", None) is not None:
            self._document.error(
                span, "a tag has no meaning here", hint="remove it: every value is plain text"
            )
        before = self._count
        anchor: str | None = getattr(event, "anchor", None)
        if anchor is not None:
            self._open.add(anchor)
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, span)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._listing(span, depth)
        else:
            node = self._table(span, depth)
        if anchor is not None:
            self._open.discard(anchor)
            self._anchors[anchor] = (node, self._count - before + 1)
        return node

    def _alias(self, event: yaml.AliasEvent, span: Span) -> Node:
        name = event.anchor or ""
        if name in self._open:
            self._fail(span, f'the alias "*{name}" stands inside what it means')
        if name not in self._anchors:
            self._fail(span, f'no anchor "&{name}" stands before this', "quote it if it is text")
        node, size = self._anchors[name]
        self._count += size
        self._bound(span)
        return node

    def _bound(self, span: Span) -> None:
        if self._count > MAX_NODES:
            self._fail(span, f"more than {MAX_NODES} values, aliases written out")

    def _scalar(self, event: yaml.ScalarEvent, span: Span) -> Scalar:
        text: str = event.value
        if not is_clean(text):
            self._fail(span, "a value cannot hold NUL or half of a surrogate pair")
        return Scalar(text, span, is_empty=not text and not event.style)

    def _listing(self, span: Span, depth: int) -> Listing:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return Listing(tuple(items), _whole(span, event, None))

    def _table(self, span: Span, depth: int) -> Table:
        pairs: list[tuple[Scalar, Node]] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            if not isinstance(key, Scalar):
                message = f"expected a word as the key, got {kind_of(key)}"
                self._fail(key.span, message, "a variable is written ${name}")
            elif isinstance(value, Scalar) and value.is_empty:
                # Nothing has no place that could be pointed at.
                pairs.append((key, value._replace(span=key.span)))
            else:
                pairs.append((key, value))
        return Table(tuple(pairs), _whole(span, event, pairs[0][0].span if pairs else None))


class _Mark(Protocol):
    """What the marks of PyYAML's two parsers have in common."""

    @property
    def index(self) -> int: ...


def _span(event: yaml.Event) -> Span:
    return Span(_index(event.start_mark), _index(event.end_mark))


def _index(mark: _Mark | None) -> int:
    return 0 if mark is None else mark.index


def _whole(start: Span, end: yaml.Event, first_key: Span | None) -> Span:
    """A flow collection from bracket to bracket; of a block one only the first key or dash."""
    if start.end > start.start:
        return Span(start.start, _index(end.end_mark))
    return first_key or Span(start.start, start.start + 1)


def _explain(document: Document, error: yaml.MarkedYAMLError) -> None:
    """Record the parser's error in our words; they differ between PyYAML's two parsers."""
    text = document.text
    problem, context = error.problem or "", error.context or ""
    mark = error.problem_mark or error.context_mark
    at = mark.index if mark is not None else 0
    char = text[at : at + 1]
    begun = error.context_mark
    opener = text[begun.index : begun.index + 1] if begun is not None else ""
    line = f" on line {begun.line + 1}" if begun is not None else ""
    starts_line = not text[:at].rsplit("\n", 1)[-1].strip()
    hint: str | None = None
    if "cannot start any token" in problem and char == "\t":
        message, hint = "a tab in the indentation", "indent with spaces"
    elif "cannot start any token" in problem:
        message, hint = f"a value cannot begin with {quote(char)}", "put it in quotes"
    elif "alias" in context or "anchor" in context:
        message, hint = f"{quote(opener)} begins an alias or anchor", "put the value in quotes"
        at = begun.index if begun is not None else at
    elif "mapping values are not allowed" in problem:
        message = "a key cannot stand here"
        hint = 'check the indentation, or quote the value if its ":" is text'
    elif "sequence entries are not allowed" in problem:
        message, hint = "a list cannot begin here", "put it on the next line, or write [a, b]"
    elif "end of stream" in problem and "quoted" in context and begun is not None:
        message, hint = "the quote is never closed", f"add a closing {opener}"
        at = begun.index
    elif "escape" in problem:
        at -= text[at - 1 : at] == "\\"
        message, hint = "unknown escape in double quotes", _ESCAPE_HINT
    elif "nesting depth" in problem:
        message = _TOO_DEEP
    elif "flow" in context:
        closer = "]" if opener == "[" else "}"
        message, hint = f"the {quote(opener)}{line} is not closed", f'add "," or "{closer}"'
        if char == ":":
            message, hint = 'a ":" cannot stand here', f'quote it, or add "{closer}" before it'
        elif begun is not None and at >= len(text.rstrip()):
            at = begun.index
    elif "block mapping" in context or "block collection" in context:
        what = "mapping" if "mapping" in context else "list"
        if starts_line:
            message = f"this line does not belong to the {what} that begins{line}"
            hint = "indent it like its siblings"
        else:
            message, hint = "text after the end of a value", "quote the whole value"
    else:
        message = f"not YAML: {problem or context}"
    document.error(Span(at, at + 1), message, hint=hint)
