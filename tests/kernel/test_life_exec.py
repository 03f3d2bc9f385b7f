"""One more command in a container: it is confined as the first one is."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
from abilities import needs_overlay, needs_root
from containers import needs_busybox
from lives import Lives, lives, python, store_root, until

from layerstore import life
from layerstore.live import ExecOptions
from layerstore.runtime.plan import LaunchError

__all__ = ["lives", "store_root"]
pytestmark = [needs_root, needs_overlay, needs_busybox]

STATUS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "SigIgn")


def _as_command_line(
    lives: Lives, name: str, script: str, how: dict[str, object], **options: object
) -> subprocess.Popen[bytes]:
    """A process that execs a shell script in a container, as ``layerstore exec`` does."""
    program = (
        "import sys; from pathlib import Path; from layerstore import life;"
        "from layerstore.store.store import Store;"
        f"options = life.ExecOptions(argv=('sh', '-c', sys.argv[3]), **{options!r});"
        "store = Store.open(Path(sys.argv[1]));"
        "sys.exit(life.execute(store, sys.argv[2], options).exit_code)"
    )
    return python(program, str(lives.root), name, script, **how)


@pytest.mark.parametrize("network", ["none", "host"])
def test_it_is_where_the_first_command_is(lives: Lives, network: str) -> None:
    kinds = ("mnt", "pid", "uts", "ipc", "net", "cgroup", "user")
    show = "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds)
    show += "; cat /proc/self/cgroup; readlink /proc/self/root; grep -E '" + "|".join(STATUS)
    show += "' /proc/self/status; pwd; env | grep -v SHLVL; id; umask"
    container = lives.run(
        f"{show}; echo end; sleep 100", network=network, env={"A": "b"}, workdir="/etc"
    )
    lives.until_logged(container, b"end\n")
    first = lives.logged(container).decode().removesuffix("end\n")
    outcome, seen = lives.exec(container, "sh", "-c", show)
    assert outcome.exit_code == 0
    assert seen == first
    assert "NoNewPrivs:\t1" in seen


def test_options_add_to_what_the_container_has(lives: Lives) -> None:
    container = lives.sleeper(env={"A": "1", "B": "2"})
    seen = lives.exec(
        container, "sh", "-c", "echo $A $B $C; id -u; id -g; pwd; ls /proc/self/fd | wc -l",
        env={"B": "x", "C": "3"}, user="12:34", workdir="/bin",
    )[1]  # fmt: skip
    assert seen.splitlines() == ["1 x 3", "12", "34", "/bin", "4"]


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        pytest.param(("sh", "-c", "exit 42"), 42, id="own-code"),
        pytest.param(("sh", "-c", "kill -9 $$"), 137, id="killed"),
    ],
)
def test_its_exit_code_is_its_own(lives: Lives, argv: tuple[str, ...], code: int) -> None:
    assert lives.exec(lives.sleeper(), *argv)[0].exit_code == code


@pytest.mark.parametrize(
    ("argv", "fields", "code", "words"),
    [
        pytest.param(("nosuch",), {}, 127, "'nosuch'", id="not-found"),
        pytest.param(("/bin",), {}, 126, "'/bin'", id="not-executable"),
        pytest.param(
            ("true",), {"workdir": "/nosuch"}, 125, "working directory", id="no-directory"
        ),
        pytest.param(("true",), {"user": "nobody"}, 125, "'nobody'", id="no-user"),
    ],
)
def test_what_does_not_start_says_why(
    lives: Lives, argv: tuple[str, ...], fields: dict[str, object], code: int, words: str
) -> None:
    container = lives.sleeper()
    with pytest.raises(LaunchError) as raised:
        lives.exec(container, *argv, **fields)
    assert raised.value.exit_code == code
    assert words in raised.value.brief
    with pytest.raises(LaunchError) as raised:
        options = ExecOptions(argv=argv, **fields)  # type: ignore[arg-type]
        life.execute_detached(lives.store, container.name, options)
    assert raised.value.exit_code == code


def test_one_that_is_left_running_belongs_to_the_container(lives: Lives) -> None:
    container = lives.sleeper()
    life.execute_detached(lives.store, container.name, ExecOptions(argv=("sleep", "999")))
    processes = {process.command: process for process in life.top(lives.store, container.name)}
    assert processes["sleep 999"].ppid == processes["sleep 1000"].pid
    began = time.monotonic()
    life.stop(lives.store, container.name)
    assert time.monotonic() - began < 0.5


def test_it_ends_when_the_container_does(lives: Lives) -> None:
    container = lives.sleeper()
    process = _as_command_line(lives, container.name, "exec sleep 999", {})
    until(lambda: len(life.top(lives.store, container.name)) == 2, "started")
    life.stop(lives.store, container.name)
    assert process.wait(10) == 137


def test_it_ends_when_its_command_line_is_killed(lives: Lives) -> None:
    container = lives.sleeper()
    process = _as_command_line(lives, container.name, "exec sleep 999", {})
    until(lambda: len(life.top(lives.store, container.name)) == 2, "started")
    process.kill()
    process.wait(10)
    until(lambda: len(life.top(lives.store, container.name)) == 1, "ended")


@pytest.mark.parametrize("delay_ms", [40, 50, 60, 65, 70, 75, 80, 90, 100, 120])
def test_a_command_line_killed_at_any_moment_leaves_nothing(lives: Lives, delay_ms: int) -> None:
    container = lives.sleeper()
    process = _as_command_line(lives, container.name, "exec sleep 999", {})
    time.sleep(delay_ms / 1000)
    process.kill()
    process.wait(10)
    until(lambda: len(life.top(lives.store, container.name)) == 1, "ended")


def test_signals_reach_it(lives: Lives) -> None:
    container = lives.sleeper()
    script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done"
    process = _as_command_line(lives, container.name, script, {"stdout": subprocess.PIPE})
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.wait(10) == 3
    process.stdout.close()
    process = _as_command_line(lives, container.name, "exec sleep 999", {})
    until(lambda: len(life.top(lives.store, container.name)) == 2, "started")
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


def test_it_reads_what_the_caller_writes(lives: Lives) -> None:
    container = lives.sleeper()
    how: dict[str, object] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    payload = os.urandom(1 << 20)
    process = _as_command_line(lives, container.name, "cat", how, interactive=True)
    assert process.communicate(payload, timeout=20)[0] == payload
    process = _as_command_line(lives, container.name, "cat", how)
    assert process.communicate(b"never read", timeout=20)[0] == b""


def test_a_terminal_of_its_own(lives: Lives) -> None:
    container = lives.sleeper()
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    streams: dict[str, object] = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    script = "tty; stty size; trap 'echo int; exit 5' INT; echo ready; while :; do sleep 0.02; done"
    process = _as_command_line(
        lives, container.name, script, streams, interactive=True, terminal=True
    )
    os.close(slave)
    seen = _read_until(master, b"ready")
    assert b"/dev/pts/0\r\n33 99\r\n" in seen
    os.write(master, b"\x03")
    assert process.wait(10) == 5
    os.close(master)


def _read_until(master: int, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        seen += os.read(master, 4096)
    return seen


def test_no_descriptor_of_the_host_is_open_in_it(lives: Lives) -> None:
    """CVE-2024-21626, CVE-2016-9962: also not while it is on its way."""
    container = lives.run("while :; do ls -l /proc/[0-9]*/fd /proc/[0-9]*/cwd 2>&1; done > /seen")
    spy = lives.upper(container) / "seen"
    lives.until(container, lambda state: spy.exists())
    for _ in range(30):
        lives.exec(container, "true")
    life.kill(lives.store, container.name)
    seen = spy.read_text(errors="replace")
    assert str(lives.root) not in seen
    assert "/sys/fs/cgroup" not in seen
    assert "python" not in seen


def test_a_replaced_interpreter_is_not_the_hosts(lives: Lives) -> None:
    """CVE-2019-5736: a script whose interpreter is /proc/self/exe gets the stub, not Python."""
    container = lives.run("printf '#!/proc/self/exe\\nx' > /bin/evil; chmod +x /bin/evil; sleep 99")
    lives.until(container, lambda state: (lives.upper(container) / "bin/evil").exists())
    time.sleep(0.1)
    outcome, written = lives.exec(container, "evil")
    assert (outcome.exit_code, written) == (126, "")


def test_a_root_with_hostile_tables_and_devices_is_only_itself(lives: Lives) -> None:
    """CVE-2019-14271: nothing of the container's is loaded; names come from its own tables."""
    victim = lives.root / "victim"
    victim.write_text("host's")
    container = lives.run(
        "mkdir -p /etc /lib; ln -s /proc/1/root/etc/passwd /etc/group; mkfifo /etc/passwd;"
        "echo x > /lib/libnss_files.so.2; echo done; sleep 99"
    )
    lives.until_logged(container, b"done")
    seen = lives.exec(
        container, "grep", "-E", "^(Uid|Gid|Groups)", "/proc/self/status", user="7:8"
    )[1]
    assert seen.split() == ["Uid:", *4 * ["7"], "Gid:", *4 * ["8"], "Groups:", "8"]
    with pytest.raises(LaunchError, match="'root'"):
        lives.exec(container, "true", user="root")
    assert Path(victim).read_text() == "host's"
