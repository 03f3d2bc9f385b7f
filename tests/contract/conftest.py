from __future__ import annotations

from collections.abc import Iterator

import pytest
from layer_world import DRIVERS, Driver, World, world_in_scratch


@pytest.fixture(scope="session", params=DRIVERS, ids=lambda driver: driver.name)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    driver: Driver = request.param
    with world_in_scratch(driver) as made:
        yield made
