"""Logs that are kept and followed, and callers that attach and detach."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
import time

import pytest
from abilities import needs_overlay, needs_root
from containers import needs_busybox
from lives import Lives, is_gone, lives, python, store_root, until

from layerstore import life
from layerstore.errors import ConflictError
from layerstore.runtime.plan import Bind
from layerstore.store.containers import Container

__all__ = ["lives", "store_root"]
pytestmark = [needs_root, needs_overlay, needs_busybox]


# ---- logs


def test_each_stream_keeps_its_order_and_its_parts(lives: Lives) -> None:
    script = "for i in 1 2 3; do echo out$i; echo err$i >&2; done; printf tail"
    container = lives.run(script)
    life.wait(lives.store, container.name)
    lines = list(life.logs(lives.store, container.name))
    for stream, expected in (
        (b"stdout", b"out1\nout2\nout3\ntail"),
        (b"stderr", b"err1\nerr2\nerr3\n"),
    ):
        assert b"".join(text for _, s, text in lines if s == stream) == expected
    times = [moment for moment, _, _ in lines]
    assert times == sorted(times)


def test_everything_that_is_written_is_kept(lives: Lives) -> None:
    container = lives.run("seq 1 300000; seq 1 1000 >&2", log_size=1 << 30)
    life.wait(lives.store, container.name)
    kept = b"".join(t for _, s, t in life.logs(lives.store, container.name) if s == b"stdout")
    assert kept == b"".join(b"%d\n" % number for number in range(1, 300_001))


def test_tail_and_since(lives: Lives) -> None:
    container = lives.run("echo old; sleep 0.5; seq 1 5")
    life.wait(lives.store, container.name)

    def read(*, tail: int | None = None, since: str | None = None) -> list[bytes]:
        lines = life.logs(lives.store, container.name, tail=tail, since=since)
        return [text for _, _, text in lines]

    assert read(tail=2) == [b"4\n", b"5\n"]
    assert read(tail=0) == []
    assert read(tail=99) == [b"old\n", b"1\n", b"2\n", b"3\n", b"4\n", b"5\n"]
    (moment,) = [m for m, _, text in life.logs(lives.store, container.name) if text == b"1\n"]
    assert read(since=moment.decode()) == [b"1\n", b"2\n", b"3\n", b"4\n", b"5\n"]
    assert read(since="1h", tail=1) == [b"5\n"]


def test_a_follower_sees_everything_until_the_end(lives: Lives) -> None:
    container = lives.run("for i in $(seq 1 20); do echo $i; sleep 0.03; done; printf end")
    arrivals = [
        (time.time_ns(), t) for _, _, t in life.logs(lives.store, container.name, follow=True)
    ]
    assert [text for _, text in arrivals] == [*(b"%d\n" % i for i in range(1, 21)), b"end"]
    assert arrivals[-1][0] - arrivals[0][0] > 300_000_000  # as it was written, not at the end


def test_logs_rotate_and_a_follower_misses_nothing(lives: Lives) -> None:
    script = "for i in $(seq 1 40); do seq $((i*1000)) $((i*1000+999)); sleep 0.02; done"
    container = lives.run(script, log_size=200_000, log_files=3)
    followed = b"".join(t for _, _, t in life.logs(lives.store, container.name, follow=True))
    assert followed == b"".join(b"%d\n" % number for number in range(1000, 41_000))
    folder = lives.store.containers.path(container.container_id) / "log"
    assert len(os.listdir(folder)) == 3
    assert all(path.stat().st_size <= 300_000 for path in folder.iterdir())
    kept = lives.logged(container)
    assert kept == followed[-len(kept) :]


def test_a_follower_learns_that_a_monitor_was_killed(lives: Lives) -> None:
    container = lives.run("echo hi; sleep 1000")
    lives.until_logged(container, b"hi")
    monitor = lives.state(container).supervisor
    assert monitor is not None
    threading.Timer(0.2, os.kill, (monitor, 9)).start()
    assert [t for _, _, t in life.logs(lives.store, container.name, follow=True)] == [b"hi\n"]
    until(lambda: threading.active_count() == 1, "the timer's thread has ended")


def test_logs_are_fast(lives: Lives) -> None:
    """The promise is 200 MB/s on an idle machine; here others may be busy."""
    block = lives.root.parent / "block"
    block.write_bytes((b"x" * 99 + b"\n") * 500_000)
    bind = Bind(source=block, target=b"/block")
    began = time.monotonic()
    container = lives.run("cat /block; cat /block; cat /block; cat /block", binds=(bind,))
    life.wait(lives.store, container.name)
    assert 200e6 / (time.monotonic() - began) > 40e6


# ---- attach


ATTACH = """
import sys
from pathlib import Path
from layerstore import life
from layerstore.store.store import Store
outcome = life.attach(Store.open(Path(sys.argv[1])), sys.argv[2])
sys.exit(99 if outcome is None else outcome.exit_code)
"""


def _attach(lives: Lives, container: Container, **how: object) -> subprocess.Popen[bytes]:
    return python(ATTACH, str(lives.root), container.name, **how)


def _until_attached(lives: Lives, container: Container, count: int = 1) -> None:
    """So many callers are attached: the monitor has a socket for each, and one to listen."""
    folder = f"/proc/{lives.state(container).supervisor}/fd"

    def sockets() -> int:
        return sum("socket:" in os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder))

    until(lambda: sockets() == count + 1, f"{count} attached")
    time.sleep(0.05)


def test_an_attached_caller_sees_the_output_and_the_exit_code(lives: Lives) -> None:
    script = "while [ ! -e /go ]; do sleep 0.02; done; echo out; echo err >&2; exit 6"
    container = lives.run(script)
    pipes: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    attached = [_attach(lives, container, **pipes) for _ in range(3)]
    _until_attached(lives, container, 3)
    lives.exec(container, "touch", "/go")
    for process in attached:
        assert process.communicate(timeout=20) == (b"out\n", b"err\n")
        assert process.returncode == 6
    assert sorted(lives.logged(container).split()) == [b"err", b"out"]


def test_an_attached_caller_writes_what_the_command_reads(lives: Lives) -> None:
    script = "while read line; do echo $line; [ $line = two ] && break; done; echo end"
    container = lives.run(script, interactive=True)
    first = _attach(lives, container, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdin is not None and first.stdout is not None
    first.stdin.write(b"one\n")
    first.stdin.flush()
    until(lambda: b"one" in lives.logged(container), "the first line is read")
    first.kill()
    first.communicate()
    second = _attach(lives, container, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    written, _ = second.communicate(b"two\n", timeout=20)
    assert written.endswith(b"two\nend\n")
    assert second.returncode == 0


def test_much_output_waits_for_a_slow_caller(lives: Lives) -> None:
    container = lives.run("while [ ! -e /go ]; do sleep 0.02; done; seq 1 400000")
    process = _attach(lives, container, stdout=subprocess.PIPE)
    _until_attached(lives, container)
    lives.exec(container, "touch", "/go")
    time.sleep(0.5)  # nobody reads meanwhile
    written, _ = process.communicate(timeout=30)
    assert written == b"".join(b"%d\n" % number for number in range(1, 400_001))


def test_the_death_of_an_attached_caller_disturbs_nobody(lives: Lives) -> None:
    container = lives.run("i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
    for _ in range(3):
        process = _attach(lives, container, stdout=subprocess.DEVNULL)
        _until_attached(lives, container)
        process.kill()
        process.wait()
    assert lives.state(container).status == "running"
    size = len(lives.logged(container))
    until(lambda: len(lives.logged(container)) > size, "it goes on")


def test_a_signal_of_an_attached_caller_reaches_the_command(lives: Lives) -> None:
    container = lives.run("trap 'exit 4' INT; echo ready; while :; do sleep 0.02; done")
    lives.until_logged(container, b"ready")
    process = _attach(lives, container, stdout=subprocess.DEVNULL)
    _until_attached(lives, container)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 4


def test_a_container_in_the_foreground_has_nothing_to_attach_to(lives: Lives) -> None:
    program = (
        "import sys; from pathlib import Path; from layerstore import run;"
        "from layerstore.store.store import Store;"
        "options = run.RunOptions(image='box', argv=('sleep', '99'));"
        "sys.exit(run.run(Store.open(Path(sys.argv[1])), options).exit_code)"
    )
    process = python(program, str(lives.root))
    until(lambda: bool(lives.store.containers.all()), "created")
    container = lives.store.containers.all()[0]
    lives.until(container, lambda state: state.status == "running")
    with pytest.raises(ConflictError, match="foreground"):
        life.attach(lives.store, container.name)
    life.stop(lives.store, container.name)
    assert process.wait(10) == 143


# ---- terminals


def _on_terminal(program: str, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    master, slave = pty.openpty()
    process = python(program, *arguments, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    return process, master


def _read_until(master: int, mark: bytes) -> bytes:
    seen = b""
    os.set_blocking(master, False)
    deadline = time.monotonic() + 15
    while mark not in seen:
        assert time.monotonic() < deadline, seen
        try:
            seen += os.read(master, 4096)
        except BlockingIOError:
            time.sleep(0.005)
    return seen


RUN = """
import sys
from pathlib import Path
from layerstore import run
from layerstore.store.store import Store
options = run.RunOptions(image='box', argv=('sh', '-c', sys.argv[2]), interactive=True,
                         terminal=True, remove=len(sys.argv) > 3)
container, outcome = run.run_on_terminal(Store.open(Path(sys.argv[1])), options)
sys.exit(99 if outcome is None else outcome.exit_code)
"""


def test_detach_keys_leave_a_command_running_that_can_be_attached_to_again(lives: Lives) -> None:
    process, master = _on_terminal(RUN, str(lives.root), "echo hello; stty -echo; cat; exit 8")
    _read_until(master, b"hello\r\n")
    time.sleep(0.1)
    os.write(master, b"typed\n")
    _read_until(master, b"typed\r\n")
    os.write(master, b"\x10x\x10\x11")  # ctrl-p alone is passed on
    assert process.wait(10) == 99
    os.close(master)
    container = lives.store.containers.all()[0]
    assert lives.state(container).status == "running"
    process, master = _on_terminal(ATTACH, str(lives.root), container.name)
    _until_attached(lives, container)
    os.write(master, b"again\n")
    _read_until(master, b"again\r\n")
    os.write(master, b"\x04")
    assert process.wait(10) == 8
    os.close(master)
    assert b"typed\r\n" in lives.logged(container)


def test_nothing_of_what_a_terminal_shows_is_lost(lives: Lives) -> None:
    process, master = _on_terminal(RUN, str(lives.root), "seq 1 20000; exit 3", "rm")
    seen = _read_until(master, b"\n20000\r\n")
    assert seen == b"".join(b"%d\r\n" % number for number in range(1, 20_001))
    assert process.wait(10) == 3
    os.close(master)
    until(lambda: lives.store.containers.ids() == [], "removed")


def test_a_terminal_that_is_closed_only_detaches(lives: Lives) -> None:
    process, master = _on_terminal(RUN, str(lives.root), "echo up; sleep 1000")
    _read_until(master, b"up\r\n")
    process.send_signal(signal.SIGHUP)
    assert process.wait(10) == 99
    os.close(master)
    container = lives.store.containers.all()[0]
    assert lives.state(container).status == "running"


def test_a_command_that_does_not_start_on_a_terminal_is_127(lives: Lives) -> None:
    process, master = _on_terminal(RUN.replace("'sh', '-c', sys.argv[2]", "'nosuch',"),
                                   str(lives.root), "")  # fmt: skip
    assert process.wait(10) != 0
    assert b"nosuch" in _read_until(master, b"LaunchError")
    os.close(master)
    assert lives.store.containers.ids() == []


def test_a_killed_terminal_caller_leaves_the_container_running(lives: Lives) -> None:
    process, master = _on_terminal(RUN, str(lives.root), "echo up; sleep 1000")
    _read_until(master, b"up\r\n")
    process.kill()
    process.wait()
    os.close(master)
    container = lives.store.containers.all()[0]
    state = lives.state(container)
    assert state.status == "running" and not is_gone(state.pid)


def test_the_control_socket_is_for_its_owner(lives: Lives) -> None:
    """CVE-2020-15257: no abstract socket; 0600 in a directory of mode 0700."""
    container = lives.sleeper()
    socket = lives.state_dir(container) / "control"
    assert socket.stat().st_mode & 0o777 == 0o600
    assert socket.parent.stat().st_mode & 0o777 == 0o700
