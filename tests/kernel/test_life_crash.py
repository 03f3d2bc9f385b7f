"""Whoever is killed, at any moment: the next command tells the truth, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import time

import pytest
from abilities import needs_overlay, needs_root
from containers import needs_busybox
from lives import Lives, is_gone, lives, monitors, python, store_root, until

from layerstore import life
from layerstore import run as running
from layerstore.errors import LayerstoreError
from layerstore.runtime.upkeep import Restart
from layerstore.store.containers import Container

__all__ = ["lives", "store_root"]
pytestmark = [needs_root, needs_overlay, needs_busybox]

LIVE_LONG = "sleep 1000 & sleep 1001 & exec sleep 1002"


def _kill_monitor(lives: Lives, container: Container) -> None:
    monitor = lives.state(container).supervisor
    assert monitor is not None
    os.kill(monitor, 9)
    until(lambda: is_gone(monitor), "the monitor has ended")


@pytest.mark.parametrize("policy", ["no", "always"])
def test_a_container_does_not_outlive_its_monitor(lives: Lives, policy: str) -> None:
    container = lives.run(LIVE_LONG, restart=Restart(policy=policy))
    pids = [process.pid for process in life.top(lives.store, container.name)]
    _kill_monitor(lives, container)
    until(lambda: all(map(is_gone, pids)), "its processes have ended")
    state = lives.state(container)
    assert (state.status, state.exit_code, state.is_supervised) == ("exited", None, False)
    assert state.cgroups == ()  # asking has removed them
    life.start(lives.store, container.name)
    assert lives.state(container).status == "running"


def test_a_container_whose_privileged_command_outlives_the_monitor_is_an_orphan(
    lives: Lives,
) -> None:
    """A change of credentials by exec takes the death signal away: the next command ends it."""
    container = lives.run(
        # By this name busybox still takes its applet from the first argument.
        "cp /bin/busybox /bin/busybox-own; chmod 4755 /bin/busybox-own;"
        "exec /bin/busybox-own sleep 1000",
        no_new_privs=False, user="0",
    )  # fmt: skip

    def is_executed() -> bool:
        return [p.command for p in life.top(lives.store, container.name)] == [
            "/bin/busybox-own sleep 1000"
        ]

    until(is_executed, "exec'd")
    pid = lives.state(container).pid
    _kill_monitor(lives, container)
    running.remove(lives.store, container.name, force=True)
    until(lambda: is_gone(pid), "ended")


def test_the_commands_of_a_killed_monitor_say_so(lives: Lives) -> None:
    container = lives.sleeper()
    _kill_monitor(lives, container)
    assert life.wait(lives.store, container.name) is None
    life.stop(lives.store, container.name)
    with pytest.raises(LayerstoreError, match="not running"):
        lives.exec(container, "true")
    assert life.stats(lives.store) == []


@pytest.mark.parametrize("remove", [False, True], ids=["kept", "ephemeral"])
def test_the_death_of_the_command_ends_the_container(lives: Lives, remove: bool) -> None:
    container = lives.run(LIVE_LONG, remove=remove)
    pid = lives.state(container).pid
    assert pid is not None
    os.kill(pid, 9)
    if remove:
        until(lambda: lives.store.containers.ids() == [], "removed")
    else:
        state = lives.until(container, lambda state: not state.is_supervised)
        assert (state.status, state.exit_code) == ("exited", 137)


START = """
import sys
from pathlib import Path
from layerstore import run
from layerstore.store.store import Store
store = Store.open(Path(sys.argv[1]))
options = run.RunOptions(image='box', argv=('sleep', '1000'), remove=sys.argv[2] == 'rm')
print('go', flush=True)
run.run_detached(store, options) if sys.argv[3] == 'detached' else run.run(store, options)
"""


@pytest.mark.parametrize("way", ["detached", "foreground"])
@pytest.mark.parametrize("keep", ["keep", "rm"])
@pytest.mark.parametrize("delay_ms", [0, 5, 10, 15, 20, 25, 30, 40, 60, 90])
def test_a_command_line_killed_at_any_moment_is_cleaned_up_after(
    lives: Lives, way: str, keep: str, delay_ms: int
) -> None:
    read_end, write_end = os.pipe()
    process = python(START, str(lives.root), keep, way, stdout=write_end)
    os.close(write_end)
    os.read(read_end, 2)
    os.close(read_end)
    time.sleep(delay_ms / 1000)
    process.kill()
    process.wait()
    # Whether a container is there depends on the moment; what is there is whole, or goes.
    time.sleep(0.3)
    for container in lives.store.containers.all():
        state = lives.state(container)
        assert state.status in ("created", "exited", "running")
        if state.status == "running":
            assert way == "detached" and state.is_supervised
            assert lives.exec(container, "true")[0].exit_code == 0
        elif keep == "keep":
            try:
                life.start(lives.store, container.name)
            except LayerstoreError as error:
                assert "not on record" in error.brief
            else:
                assert lives.state(container).status == "running"
    lives.end_all()
    lives.store.recover()


def test_what_killed_commands_left_of_ephemeral_containers_is_tidied(lives: Lives) -> None:
    container = lives.run(LIVE_LONG, remove=True)
    _kill_monitor(lives, container)
    until(lambda: lives.state(container).status == "exited", "seen as exited")
    assert running.tidy(lives.store) == [container.container_id]
    fresh = life.create(lives.store, lives.options("true", remove=True))
    assert running.tidy(lives.store) == []  # it may be about to start
    os.utime(lives.store.containers.path(fresh.container_id), (0, 0))
    assert running.tidy(lives.store) == [fresh.container_id]


@pytest.mark.parametrize("delay_ms", [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 25, 30, 40])
def test_a_monitor_killed_at_any_moment_of_a_launch_leaves_nothing(
    lives: Lives, delay_ms: int
) -> None:
    container = life.create(lives.store, lives.options(LIVE_LONG))
    program = (
        "import sys; from pathlib import Path; from layerstore import life;"
        "from layerstore.store.store import Store;"
        "life.start(Store.open(Path(sys.argv[1])), sys.argv[2])"
    )
    process = python(program, str(lives.root), container.name, stderr=subprocess.DEVNULL)
    until(lambda: bool(monitors(lives.root)), "the monitor works")
    time.sleep(delay_ms / 1000)
    for monitor in monitors(lives.root):
        os.kill(monitor, 9)
    process.wait(20)
    until(lambda: not monitors(lives.root), "ended")
    time.sleep(0.05)
    state = lives.state(container)
    assert (state.is_supervised, state.cgroups) == (False, ())
    assert state.status in ("created", "exited")
    life.start(lives.store, container.name)
    assert lives.exec(container, "true")[0].exit_code == 0
