"""Fixtures that every folder of tests may use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def missing_tool_is_a_failure() -> None:
    pytest.fail("a foreign program that this test needs is not installed, and CI may not lack it")
