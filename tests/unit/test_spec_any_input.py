"""Whatever the bytes: a spec or a SpecError, and every position lies in the text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.spec import SpecError, parse
from layerstore.speclang import document

GOLDEN = Path(__file__).parents[1] / "golden/spec"
PAGE = Path(__file__).parents[2] / "docs/spec.md"
SEEDS = [path.read_bytes() for path in sorted(GOLDEN.glob("*.yaml"))]
SEEDS += [block.encode() for block in PAGE.read_text().split("```")[1::2]]
PIECES = [
    b"\n", b" ", b"  ", b"- ", b": ", b"{", b"}", b"[", b"]", b"'", b'"', b"\t", b"#", b"*a",
    b"&a ", b"|\n", b">-\n", b"!!x ", b"---\n", b"...\n", b"? ", b"<<: ", b"%YAML 1.1\n", b"${",
    b"${x}", b"$${", b"\\", b"\\x", b"\\U00110000", b"\x00", b"\xff", b"\xe2\x80\xa8",
    b"\xef\xbb\xbf", b"\r", b"0", b"run: ", b"copy: ", b"stages:\n",
    b"from: scratch\n", b"layerstore: 1\n",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    raw = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        end = min(len(raw), at + draw(st.integers(0, 8)))
        raw = raw[:at] + draw(st.sampled_from(PIECES)) + raw[end:]
    return raw


def check(raw: bytes) -> None:
    try:
        parse(raw, filename="spec.yaml")
    except SpecError as error:
        assert error.diagnostics
        lines = document._BREAK.split(raw.decode(errors="replace").removeprefix("\ufeff"))
        for found in error.diagnostics:
            assert found.line <= len(lines)
            assert found.line == 0 or found.column <= len(lines[found.line - 1]) + 1
            assert found.render("spec.yaml").isprintable() or "\n" in found.render("spec.yaml")


@pytest.mark.parametrize("parser", ["SafeLoader", "CSafeLoader"])
@settings(max_examples=150, deadline=None)
@given(raw=mutated())
def test_a_mutated_spec_is_a_spec_or_a_spec_error(parser: str, raw: bytes) -> None:
    before = document._LOADER
    document._LOADER = getattr(yaml, parser, yaml.SafeLoader)
    try:
        check(raw)
    finally:
        document._LOADER = before


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=60))
def test_any_bytes_are_a_spec_or_a_spec_error(raw: bytes) -> None:
    check(raw)
