"""Fixtures that every folder of tests may use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def missing_tool_is_a_failure() -> None:
    pytest.fail("a foreign program that this test needs is not installed, and CI may not lack it")


@pytest.fixture(scope="module", autouse=True)
def no_thread_outlives_its_module() -> Iterator[None]:
    """A container is launched from a process with one thread; others' tests may need another."""
    yield
    world = sys.modules.get("layer_world")
    if world is not None:
        world.leave_namespace()
