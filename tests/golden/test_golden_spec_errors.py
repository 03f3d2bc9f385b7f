"""The whole text of every message: golden/spec/NAME.yaml is wrong, NAME.txt says how."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from layerstore.spec import SpecError, parse
from layerstore.speclang import document

FOLDER = Path(__file__).parent / "spec"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PARSERS = [yaml.SafeLoader, *([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])]


def messages(name: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse((FOLDER / f"{name}.yaml").read_bytes(), filename="spec.yaml")
    return f"{caught.value}\n"


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: str(parser.__name__))
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_spec_gets_these_messages_from_either_parser_of_pyyaml(
    name: str, parser: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "_LOADER", parser)
    assert messages(name) == (FOLDER / f"{name}.txt").read_text()


def test_a_spec_with_three_mistakes_reports_all_three() -> None:
    with pytest.raises(SpecError) as caught:
        parse((FOLDER / "three_mistakes.yaml").read_bytes(), filename="spec.yaml")
    assert [(found.line, found.column) for found in caught.value.diagnostics] == [
        (8, 10),
        (9, 40),
        (11, 16),
    ]
    assert caught.value.exit_code == 2
