"""Containers that live on by themselves: start, stop, signals, restarts, pausing."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from abilities import needs_overlay, needs_root
from containers import needs_busybox
from lives import Lives, is_gone, lives, python, store_root, until

from layerstore import commit as committing
from layerstore import life
from layerstore import run as running
from layerstore.errors import ConflictError, DamagedError, NotFoundError, UsageError
from layerstore.names import ImageRef
from layerstore.runtime.plan import Bind, LaunchError
from layerstore.runtime.state import read_state
from layerstore.runtime.upkeep import HealthCheck, Restart

__all__ = ["lives", "store_root"]
pytestmark = [needs_root, needs_overlay, needs_busybox]

BOTH_DRIVERS = pytest.mark.parametrize("driver", ["composed", "stacked"])


# ---- start


def test_a_detached_container_runs_on_and_its_end_is_on_record(lives: Lives) -> None:
    container = lives.run("echo out; echo err >&2; sleep 0.3; exit 7")
    state = lives.state(container)
    assert (state.status, state.is_supervised, state.exit_code) == ("running", True, None)
    assert life.wait(lives.store, container.name) == 7
    state = lives.until(container, lambda state: not state.is_supervised)
    assert (state.status, state.exit_code, state.pid, state.cgroups) == ("exited", 7, None, ())
    assert sorted(lives.logged(container).splitlines()) == [b"err", b"out"]


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        pytest.param(("nosuch",), 127, id="not-found"),
        pytest.param(("/bin",), 126, id="not-executable"),
    ],
)
def test_a_command_that_does_not_start_fails_as_in_the_foreground(
    lives: Lives, argv: tuple[str, ...], code: int
) -> None:
    with pytest.raises(LaunchError) as foreground:
        running.run(lives.store, lives.options("", argv=argv))
    with pytest.raises(LaunchError) as detached:
        lives.run("", argv=argv)
    assert detached.value.exit_code == foreground.value.exit_code == code
    assert detached.value.brief == foreground.value.brief
    assert lives.store.containers.ids() == []


def test_a_mount_that_fails_says_at_which_stage(lives: Lives) -> None:
    bad = lives.root / "nosuch"
    with pytest.raises(LaunchError) as raised:
        lives.run("true", binds=(Bind(source=bad, target=b"/x"),))
    assert raised.value.exit_code == 125
    assert "mount into the root" in raised.value.brief


def test_a_container_is_removed_when_it_ends_if_so_wanted(lives: Lives) -> None:
    container = lives.run("sleep 0.1; exit 3", remove=True)
    assert life.wait(lives.store, container.name) == 3
    until(lambda: container.container_id not in lives.store.containers.ids(), "removed")
    with pytest.raises(NotFoundError):
        lives.store.containers.find(container.name)


@BOTH_DRIVERS
def test_a_started_container_has_the_changes_that_it_made(lives: Lives, driver: str) -> None:
    script = "cat /count 2>/dev/null; echo x >> /count; rm -f /bin/wc; sleep 100"
    container = lives.run(script, driver=driver)
    lives.until(container, lambda state: (lives.upper(container) / "count").exists())
    life.stop(lives.store, container.name)
    assert life.start(lives.store, container.name) == container
    lives.until_logged(container, b"x\n")
    outcome, listed = lives.exec(container, "ls", "/bin/wc")
    assert (outcome.exit_code, "No such file" in listed) == (1, True)
    assert lives.exec(container, "cat", "/count")[1] == "x\nx\n"
    entries = {
        change.path: change.kind for change in committing.changes(lives.store, container.name)
    }
    assert entries == {b"/": "C", b"/bin": "C", b"/count": "A", b"/bin/wc": "D"}


def test_start_leaves_a_running_container_alone(lives: Lives) -> None:
    container = lives.sleeper()
    pid = lives.state(container).pid
    life.start(lives.store, container.name)
    assert lives.state(container).pid == pid


def test_a_created_container_is_started_later(lives: Lives) -> None:
    container = life.create(lives.store, lives.options("echo hello"))
    assert lives.state(container).status == "created"
    life.start(lives.store, container.name)
    assert life.wait(lives.store, container.name) == 0
    assert lives.logged(container) == b"hello\n"


def test_a_container_that_ran_in_the_foreground_can_be_started_again(lives: Lives) -> None:
    running.run(lives.store, lives.options("echo a >> /f"), stdout=2)
    container = lives.store.containers.all()[0]
    life.start(lives.store, container.name)
    assert life.wait(lives.store, container.name) == 0
    assert (lives.upper(container) / "f").read_text() == "a\na\n"


def test_nothing_is_started_from_a_record_of_another_version(lives: Lives) -> None:
    container = life.create(lives.store, lives.options("true"))
    record = lives.store.containers.path(container.container_id) / "launch.json"
    record.write_text(record.read_text().replace('"shm_size"', '"future"'))
    with pytest.raises(DamagedError, match="by another version"):
        life.start(lives.store, container.name)


def test_an_init_reaps_and_passes_signals_on(lives: Lives) -> None:
    script = "trap 'echo term; exit 9' TERM; (sleep 0.05 &) ; while true; do sleep 0.02; done"
    container = lives.run(script, init=True)
    lives.until(container, lambda state: state.status == "running")
    time.sleep(0.3)
    processes = lives.exec(container, "ps", "-o", "ppid,stat,args")[1].splitlines()
    assert [line for line in processes if line.split()[:2] == ["1", "Z"]] == []
    life.stop(lives.store, container.name)
    assert (lives.state(container).exit_code, lives.logged(container)) == (9, b"term\n")


# ---- stop, kill, wait


@pytest.mark.parametrize(
    ("script", "fields", "code"),
    [
        pytest.param("trap 'exit 5' TERM; while :; do sleep 0.02; done", {}, 5, id="handled"),
        pytest.param("exec sleep 1000", {}, 143, id="not-handled"),
        pytest.param("trap '' TERM; while :; do sleep 0.02; done", {}, 137, id="ignored"),
        pytest.param("trap 'exit 6' INT; while :; do sleep 0.02; done", {"stop_signal": "SIGINT"},
                     6, id="own-signal"),
    ],
)  # fmt: skip
def test_stop(lives: Lives, script: str, fields: dict[str, object], code: int) -> None:
    container = lives.run("echo ready; " + script, stop_timeout_s=0.5, **fields)
    lives.until_logged(container, b"ready")
    time.sleep(0.05)
    life.stop(lives.store, container.name)
    state = lives.state(container)
    assert (state.status, state.exit_code, state.is_supervised) == ("exited", code, False)
    life.stop(lives.store, container.name)  # once more: nothing to do


@pytest.mark.parametrize(("signal", "code"), [("KILL", 137), ("SIGTERM", 143), ("2", 130)])
def test_kill_ends_what_does_not_handle_the_signal(lives: Lives, signal: str, code: int) -> None:
    container = lives.sleeper()
    life.kill(lives.store, container.name, signal)
    assert life.wait(lives.store, container.name) == code


def test_kill_sends_any_signal(lives: Lives) -> None:
    container = lives.run("trap 'echo usr' USR1; echo ready; while :; do sleep 0.02; done")
    lives.until_logged(container, b"ready")
    life.kill(lives.store, container.name, "USR1")
    lives.until_logged(container, b"usr")
    with pytest.raises(UsageError, match="NOSUCH"):
        life.kill(lives.store, container.name, "NOSUCH")


def test_what_does_not_run_is_neither_killed_nor_entered(lives: Lives) -> None:
    container = life.create(lives.store, lives.options("true"))
    for call in (
        lambda: life.kill(lives.store, container.name),
        lambda: lives.exec(container, "true"),
        lambda: life.pause(lives.store, container.name),
        lambda: life.attach(lives.store, container.name),
        lambda: life.top(lives.store, container.name),
    ):
        with pytest.raises(ConflictError, match="not running"):
            call()


def test_everybody_who_waits_gets_the_exit_code(lives: Lives) -> None:
    container = lives.run("sleep 0.5; exit 11")
    program = (
        "import sys; from pathlib import Path; from layerstore import life;"
        "from layerstore.store.store import Store;"
        "sys.exit(life.wait(Store.open(Path(sys.argv[1])), sys.argv[2]))"
    )
    waiting = [python(program, str(lives.root), container.name) for _ in range(3)]
    assert [process.wait(20) for process in waiting] == [11, 11, 11]


def test_restart_stops_and_starts(lives: Lives) -> None:
    container = lives.sleeper()
    before = lives.state(container).pid
    life.restart(lives.store, container.name)
    after = lives.state(container)
    assert after.status == "running" and after.pid != before and is_gone(before)


# ---- pause


def test_a_paused_container_stands_still(lives: Lives) -> None:
    container = lives.run("while :; do echo x >> /ticks; sleep 0.01; done")
    ticks = lives.upper(container) / "ticks"
    lives.until(container, lambda state: ticks.exists())
    life.pause(lives.store, container.name)
    assert lives.state(container).status == "paused"
    size = ticks.stat().st_size
    time.sleep(0.1)
    assert ticks.stat().st_size == size
    for call in (
        lambda: life.pause(lives.store, container.name),
        lambda: lives.exec(container, "true"),
    ):
        with pytest.raises(ConflictError, match="paused"):
            call()
    life.unpause(lives.store, container.name)
    until(lambda: ticks.stat().st_size > size, "it goes on")
    with pytest.raises(ConflictError, match="not paused"):
        life.unpause(lives.store, container.name)


@pytest.mark.parametrize("force", [False, True], ids=["stop", "remove"])
def test_a_paused_container_can_be_ended(lives: Lives, force: bool) -> None:
    container = lives.sleeper()
    life.pause(lives.store, container.name)
    if force:
        running.remove(lives.store, container.name, force=True)
        assert lives.store.containers.ids() == []
    else:
        life.stop(lives.store, container.name)
        assert lives.state(container).exit_code == 143


def test_a_running_container_is_committed_while_it_stands_still(lives: Lives) -> None:
    # At any instant the one file has as many lines as the other, or one more.
    script = "while :; do echo x >> /a; echo x >> /b; done"
    container = lives.run(script)
    lives.until(container, lambda state: (lives.upper(container) / "b").exists())
    for round_ in range(3):
        committing.commit(lives.store, container.name, ImageRef.parse(f"copy{round_}"))
        assert lives.state(container).status == "running"
        copied = lives.run("echo $(($(wc -l < /a) - $(wc -l < /b)))", image=f"copy{round_}")
        life.wait(lives.store, copied.name)
        assert lives.logged(copied) in (b"0\n", b"1\n")
        running.remove(lives.store, copied.name)
        time.sleep(0.05)


# ---- restart policies


def test_a_command_that_fails_is_restarted_so_often_as_wanted(lives: Lives) -> None:
    restart = Restart(policy="on-failure", tries=2)
    container = lives.run("echo run; exit 3", restart=restart)
    assert life.wait(lives.store, container.name) == 3
    state = lives.until(container, lambda state: not state.is_supervised)
    assert (state.restarts, state.exit_code) == (2, 3)
    lines = list(life.logs(lives.store, container.name))
    assert [text for _, _, text in lines] == [b"run\n"] * 3
    seconds = [float(moment[17:-1]) for moment, _, _ in lines]
    assert (seconds[1] - seconds[0]) % 60 > 0.1
    assert (seconds[2] - seconds[1]) % 60 > 0.2


def test_a_command_that_succeeds_is_not_a_failure(lives: Lives) -> None:
    container = lives.run("echo run", restart=Restart(policy="on-failure"))
    assert life.wait(lives.store, container.name) == 0
    assert lives.logged(container) == b"run\n"


def test_a_container_that_is_always_restarted_ends_when_it_is_stopped(lives: Lives) -> None:
    container = lives.run("echo run; sleep 0.05", restart=Restart(policy="always"))
    lives.until(container, lambda state: state.restarts >= 2)
    life.stop(lives.store, container.name)
    state = lives.state(container)
    assert (state.status, state.is_supervised) == ("exited", False)
    count = lives.logged(container).count(b"run")
    time.sleep(1)
    assert lives.logged(container).count(b"run") == count


def test_a_container_that_waits_for_its_restart_is_stopped_at_once(lives: Lives) -> None:
    container = lives.run("exit 1", restart=Restart(policy="always"))
    lives.until(container, lambda state: state.restarts >= 3)
    lives.until(container, lambda state: state.status == "restarting")
    began = time.monotonic()
    life.stop(lives.store, container.name)
    assert time.monotonic() - began < 0.5
    assert lives.state(container).status == "exited"


def test_the_kill_of_a_command_by_somebody_else_is_a_failure(lives: Lives) -> None:
    container = lives.sleeper(restart=Restart(policy="on-failure", tries=1))
    first = lives.state(container).pid
    assert first is not None
    os.kill(first, 9)
    state = lives.until(container, lambda state: state.restarts == 1 and state.status == "running")
    assert state.pid != first


def test_a_container_in_the_foreground_is_not_restarted(lives: Lives) -> None:
    with pytest.raises(UsageError, match="foreground"):
        running.run(lives.store, lives.options("true", restart=Restart(policy="always")))


# ---- health


def test_a_health_check_says_when_a_container_works(lives: Lives) -> None:
    check = HealthCheck(
        argv=(b"sh", b"-c", b"test -e /well"), interval_s=0.1, timeout_s=5, retries=2
    )
    container = lives.run("sleep 0.3; touch /well; sleep 1; rm /well; sleep 100", health=check)
    assert lives.until(container, lambda state: state.health != "").health == "starting"
    lives.until(container, lambda state: state.health == "healthy")
    lives.until(container, lambda state: state.health == "unhealthy")


def test_a_health_check_that_hangs_has_failed(lives: Lives) -> None:
    check = HealthCheck(argv=(b"sleep", b"100"), interval_s=0.1, timeout_s=0.1, retries=1)
    container = lives.sleeper(health=check)
    lives.until(container, lambda state: state.health == "unhealthy")
    assert len(life.top(lives.store, container.name)) <= 2
    life.stop(lives.store, container.name)


# ---- what it looks like


def test_top_and_stats(lives: Lives) -> None:
    container = lives.run("sleep 1000 & exec sleep 999")
    until(
        lambda: (
            {process.command for process in life.top(lives.store, container.name)}
            == {"sleep 999", "sleep 1000"}
        ),
        "both commands",
    )
    processes = life.top(lives.store, container.name)
    assert lives.state(container).pid in {process.pid for process in processes}
    (sample,) = life.stats(lives.store, [container.name])
    assert (sample.name, sample.pids) == (container.name, 2)
    assert sample.memory is not None and 0 < sample.memory < 64 << 20
    assert sample.memory_limit is None
    assert sample.cpu_ns is not None and 0 < sample.cpu_ns < 10_000_000_000
    assert (sample.received_bytes, sample.sent_bytes) == (0, 0)
    assert life.stats(lives.store) != []


def test_a_monitor_is_small_and_sleeps(lives: Lives) -> None:
    containers = [lives.sleeper() for _ in range(8)]  # which share the interpreter's code
    time.sleep(0.2)
    folder = Path(f"/proc/{lives.state(containers[0]).supervisor}")

    def switches() -> list[str]:
        lines = (folder / "status").read_text().splitlines()
        return [line for line in lines if line.startswith("voluntary_ctxt_switches")]

    before = switches()
    time.sleep(1)
    assert switches() == before
    rollup = (folder / "smaps_rollup").read_text()
    pss_kb = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss_kb < 5 * 1024
    assert sorted(os.readlink(folder / "fd" / name) for name in "012") == ["/dev/null"] * 3


def test_the_state_of_another_boot_is_over(lives: Lives) -> None:
    container = lives.run("true")
    life.wait(lives.store, container.name)
    path = lives.state_dir(container) / "state.json"
    lives.until(container, lambda state: not state.is_supervised)
    boot = lives.state(container).boot_id
    text = path.read_text().replace('"exited"', '"running"').replace(boot, "an-earlier-boot")
    path.write_text(text.replace('"pid": null', f'"pid": {os.getpid()}'))
    state = lives.state(container)
    assert (state.status, state.pid, state.exit_code) == ("exited", None, 0)
    life.start(lives.store, container.name)
    assert life.wait(lives.store, container.name) == 0
    assert read_state(lives.state_dir(container)).boot_id == boot


def test_a_process_with_threads_can_start_and_end_containers(lives: Lives) -> None:
    with_thread = threading.Event()
    thread = threading.Thread(target=with_thread.wait)
    thread.start()
    try:
        container = lives.run("echo hi; exec sleep 1000")
        lives.until_logged(container, b"hi")
        life.restart(lives.store, container.name)
        life.stop(lives.store, container.name)
        assert lives.state(container).exit_code == 143
    finally:
        with_thread.set()
        thread.join()
