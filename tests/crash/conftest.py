"""Options and stores of the crash tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from crashkit import Stores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-point",
        action="store_true",
        help="crash at every call to the kernel that changes the store: minutes, not seconds",
    )


@pytest.fixture
def limit(request: pytest.FixtureRequest) -> int | None:
    """How many points of a command are tried."""
    return None if request.config.getoption("--every-point", default=False) else 8


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    memory = Path("/dev/shm")
    # A kill leaves the page cache alone: what a disk would do to a store is another test's.
    parent = memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("crash")
    with tempfile.TemporaryDirectory(prefix="layerstore-crash-", dir=parent) as folder:
        yield Stores(Path(folder))
