"""Many containers: at once, and one after another. ``LIVES=2000`` makes it so many of them."""

from __future__ import annotations

import os
import time

import pytest
from abilities import needs_overlay, needs_root
from containers import needs_busybox
from lives import Lives, lives, monitors, store_root, until

from layerstore import life
from layerstore import run as running
from layerstore.errors import LayerstoreError

__all__ = ["lives", "store_root"]
pytestmark = [needs_root, needs_overlay, needs_busybox]

MANY = int(os.environ.get("LIVES", "200"))


def test_fifty_containers_at_once(lives: Lives) -> None:
    containers = [lives.sleeper() for _ in range(50)]
    assert len(monitors(lives.root)) == 50
    began = time.perf_counter()
    samples = life.stats(lives.store)
    assert len(samples) == 50
    assert time.perf_counter() - began < 0.5
    assert all(lives.exec(container, "true")[0].exit_code == 0 for container in containers[::10])
    for container in containers:
        life.stop(lives.store, container.name)
    assert {lives.state(container).exit_code for container in containers} == {143}
    for container in containers:
        running.remove(lives.store, container.name)


def test_one_after_another_leaves_nothing(lives: Lives) -> None:
    before = lives.leftovers()
    for number in range(MANY):
        if number % 4 == 0:
            container = lives.run("exit 5", remove=True)
            try:
                assert life.wait(lives.store, container.name) == 5
            except LayerstoreError:  # it was faster, and is gone
                pass
        elif number % 4 == 1:
            outcome = running.run(lives.store, lives.options("exit 6", remove=True))
            assert outcome.exit_code == 6
        elif number % 4 == 2:
            container = lives.sleeper()
            assert lives.exec(container, "sh", "-c", "exit 7")[0].exit_code == 7
            running.remove(lives.store, container.name, force=True)
        else:
            with pytest.raises(LayerstoreError):
                lives.run("", argv=("nosuch",))
    until(lambda: lives.leftovers() == before, f"{lives.leftovers()} != {before}")
