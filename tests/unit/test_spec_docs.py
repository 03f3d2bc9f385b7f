"""The reference for users and the schema for editors say what the parser does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerstore import spec
from layerstore.speclang import steps as spec_steps

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/spec.md").read_text()
SCHEMA_FILE = ROOT / "layerstore/data/spec.schema.json"
# Any: JSON has no other type.
SCHEMA: Any = json.loads(SCHEMA_FILE.read_text())
DEFINITIONS: Any = SCHEMA["definitions"]

BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def whole(block: str) -> str:
    """A block of the page as a spec: steps and parts of a stage get what they lack."""
    if block.startswith("layerstore:"):
        return block
    if block.startswith("- "):
        return f"layerstore: 1\nfrom: scratch\nsteps:\n{block}"
    return f"layerstore: 1\nfrom: scratch\n{block}"


def is_fragment(block: str) -> bool:
    return block.startswith("layerstore:") and not re.search("^(from|stages):", block, re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: str(block).split("\n")[0])
def test_every_example_of_the_page_is_right(block: str) -> None:
    if is_fragment(block):
        step = spec.UseStep(
            position=spec.Position("spec.yaml", 1, 1), file=b"f", variables=(("name", "app"),)
        )
        assert spec.parse_fragment(block.encode(), filename="f", step=step).steps
    else:
        assert spec.parse(whole(block).encode(), filename="spec.yaml").stages


def test_every_verb_and_every_base_has_an_example_on_the_page() -> None:
    blocks = [whole(block).encode() for block in BLOCKS if not is_fragment(block)]
    specs = [spec.parse(block, filename="s") for block in blocks]
    stages = [stage for found in specs for stage in found.stages]
    steps = {type(step).__name__ for stage in stages for step in stage.steps}
    assert steps == {f"{verb.capitalize()}Step" for verb in spec_steps.VERBS}
    mounts = {
        type(mount).__name__.removesuffix("Mount").lower()
        for stage in stages
        for step in stage.steps
        if isinstance(step, spec.RunStep)
        for mount in step.mounts
    }
    assert mounts == set(spec_steps.MOUNTS)
    documented = set(re.findall(r"^\| `\{(\w+): ", PAGE, re.MULTILINE))
    assert documented == set(spec.BASES)


def test_every_key_is_on_the_page() -> None:
    keys = {
        *spec.TOP_KEYS, *spec.DEBIAN_KEYS, *spec.CONFIG_KEYS, *spec.HEALTHCHECK_KEYS, *spec.TESTS,
        *spec.OUTPUTS, *spec.DEBIAN_VARIANTS, *spec_steps.STEP_KEYS, *spec_steps.RUN_KEYS,
        *spec_steps.VERBS, *spec_steps.MOUNTS, "sha256",
        *(key for inside in spec_steps.VERBS.values() for key in inside),
    }  # fmt: skip
    assert [key for key in sorted(keys) if f"`{key}`" not in PAGE] == []


def test_the_mistake_on_the_page_is_the_real_message() -> None:
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    text = (
        "layerstore: 1\nfrom: scratch\n\nsteps:\n  - run: pip wheel -r /src/requirements.txt\n"
        "    mounts:\n      - {bnd: requirements.txt, to: /src/requirements.txt}\n"
    )
    with pytest.raises(spec.SpecError) as caught:
        spec.parse(text.encode(), filename="spec.yaml")
    assert f"{caught.value}\n" == shown


# The schema


def variants(node: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(the key that says what it is, the keys beside it) of a ``oneOf`` of mappings."""
    for found in node["oneOf"]:
        if "properties" in found:
            first, *beside = found["properties"]
            assert first in found["required"]
            assert found["additionalProperties"] is False
            yield first, tuple(beside)


def keys_of(node: Any) -> set[str]:
    assert node["additionalProperties"] is False
    return set(node["properties"])


def inside(verb: Any) -> set[str]:
    """The keys of the mapping that a verb takes; none if it takes no mapping."""
    for found in [verb, *verb.get("oneOf", [])]:
        if "properties" in found:
            return keys_of(found)
    return set()


def test_the_schema_and_the_parser_know_the_same_keys() -> None:
    assert keys_of(SCHEMA) == set(spec.TOP_KEYS)
    assert keys_of(DEFINITIONS["stage"]) == set(spec.STAGE_KEYS)
    assert keys_of(DEFINITIONS["config"]) == set(spec.CONFIG_KEYS)
    healthcheck = DEFINITIONS["config"]["properties"]["healthcheck"]
    assert inside(healthcheck) == set(spec.HEALTHCHECK_KEYS)
    assert dict(variants(DEFINITIONS["from"])) == spec.BASES
    assert dict(variants(DEFINITIONS["test"])) == spec.TESTS
    assert dict(variants(DEFINITIONS["output"])) == dict.fromkeys(spec.OUTPUTS, ())
    assert dict(variants(DEFINITIONS["mount"])) == dict.fromkeys(spec_steps.MOUNTS, ("to",))
    (debian,) = (kind for kind in DEFINITIONS["from"]["oneOf"] if "debian" in str(kind))
    assert inside(debian["properties"]["debian"]) == set(spec.DEBIAN_KEYS)


def test_the_schema_and_the_parser_know_the_same_verbs() -> None:
    assert {verb: set(beside) for verb, beside in variants(DEFINITIONS["step"])} == {
        verb: {*spec_steps.STEP_KEYS, *(spec_steps.RUN_KEYS if verb == "run" else ())}
        for verb in spec_steps.VERBS
    }
    for step in DEFINITIONS["step"]["oneOf"]:
        (verb,) = step["required"]
        assert (verb, inside(step["properties"][verb])) == (verb, set(spec_steps.VERBS[verb]))


WRONG = sorted((ROOT / "tests/golden/spec").glob("*.yaml"))
# What a schema cannot see: order, references between stages, layers, variables, the text itself.
BEYOND_A_SCHEMA = {"version_not_first", "duplicate_keys", "variables_in_text"}


@pytest.fixture(scope="module")
def is_valid() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="needs the Python package jsonschema")
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    return jsonschema.Draft7Validator(SCHEMA).is_valid


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if not is_fragment(block)], ids=lambda b: b.split("\n")[0]
)
def test_the_schema_accepts_what_is_right(block: str, is_valid: Any) -> None:
    # An editor reads by YAML 1.2, in which a time is text.
    right = re.sub(r"(mtime: )(\S+Z)", r'\1"\2"', whole(block))
    assert is_valid(yaml.safe_load(right))


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_the_schema_refuses_what_is_wrong(path: Path, is_valid: Any) -> None:
    try:
        document = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        return
    assert is_valid(document) is (path.stem in BEYOND_A_SCHEMA)
