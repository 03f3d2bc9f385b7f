"""Containers are really started here, as root."""

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
from containers import World, launcher, leftovers, needs_busybox, spawn, world

from layerstore.errors import ConflictError
from layerstore.kernel.cgroups import hierarchies
from layerstore.runtime.limits import Limits
from layerstore.runtime.plan import Bind, LaunchError, Tmpfs, parse_user
from layerstore.runtime.state import (
    acquire_lock,
    cleanup_leftovers,
    read_state,
    read_stubs,
)
from layerstore.runtime.supervise import run

__all__ = ["world"]
pytestmark = [needs_root, needs_overlay, needs_busybox]


# ---- exit codes


@pytest.mark.parametrize(
    ("script", "code"),
    [
        pytest.param("exit 0", 0, id="success"),
        pytest.param("exit 7", 7, id="own-code"),
        pytest.param("exit 255", 255, id="largest"),
        pytest.param("sh -c 'kill -9 $$'; exit $?", 137, id="child-killed"),
    ],
)
def test_the_exit_code_is_the_commands_own(world: World, script: str, code: int) -> None:
    outcome, _ = world.run("sh", "-c", script)
    assert outcome.exit_code == code
    assert not outcome.oom_killed
    state = read_state(world.state)
    assert (state.status, state.exit_code, state.pid) == ("exited", code, None)
    assert state.finished_ns is not None and state.started_ns is not None
    assert state.created_ns < state.started_ns < state.finished_ns


def _failure(world: World, *argv: str, **fields: object) -> LaunchError:
    with pytest.raises(LaunchError) as raised:
        world.run(*argv, **fields)
    return raised.value


def test_a_command_that_is_not_in_the_path_is_127(world: World) -> None:
    error = _failure(world, "nosuch")
    assert error.exit_code == 127
    assert "'nosuch'" in error.brief
    assert read_state(world.state).exit_code == 127


def test_a_command_that_does_not_exist_is_127(world: World) -> None:
    assert _failure(world, "/bin/nosuch").exit_code == 127


def test_a_script_without_its_interpreter_is_127(world: World) -> None:
    script = world.lower / "script"
    script.write_text("#!/no/interpreter\n")
    script.chmod(0o755)
    assert _failure(world, "/script").exit_code == 127


def test_what_is_not_executable_is_126(world: World) -> None:
    (world.lower / "bin/data").write_text("data")
    assert _failure(world, "/bin/data").exit_code == 126
    assert _failure(world, "data").exit_code == 126
    assert _failure(world, "/bin").exit_code == 126


def test_what_is_no_program_is_126(world: World) -> None:
    (world.lower / "bin/data").write_text("data")
    (world.lower / "bin/data").chmod(0o755)
    error = _failure(world, "data")
    assert error.exit_code == 126
    assert "no program" in error.brief


def test_the_path_of_the_container_decides(world: World) -> None:
    (world.lower / "own").mkdir()
    (world.lower / "own/tool").symlink_to("/bin/busybox")
    assert _failure(world, "tool").exit_code == 127
    outcome, _ = world.run("tool", "--list", env=((b"PATH", b"/nowhere:/own"),))
    assert outcome.exit_code == 127  # busybox knows no applet called "tool"
    (world.lower / "own/true").symlink_to("/bin/busybox")
    assert world.run("true", env=((b"PATH", b"/nowhere:/own"),))[0].exit_code == 0


# ---- what the command sees


def test_environment_directory_and_host_name(world: World) -> None:
    seen = world.sh("pwd; hostname; env", cwd=b"/new/dir", env=((b"A", b"b c"),)).splitlines()
    assert seen[:2] == ["/new/dir", "box"]
    assert set(seen[2:]) >= {"A=b c", "HOSTNAME=box", "HOME=/"}
    assert any(line.startswith("PATH=/usr/local/sbin:") for line in seen)
    assert (world.upper / "new/dir").is_dir()
    assert b"/new" not in {stub.path for stub in read_stubs(world.state)}


def test_the_command_is_pid_1_of_its_own_namespaces(world: World) -> None:
    kinds = ("mnt", "pid", "uts", "ipc", "net", "cgroup")
    script = "echo $$; for n in " + " ".join(kinds) + "; do readlink /proc/self/ns/$n; done"
    first, *inside = world.sh(script).split()
    assert first == "1"
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    assert len(inside) == 6
    assert not set(inside) & set(outside)
    assert os.readlink("/proc/self/ns/net") in world.sh(
        "readlink /proc/self/ns/net", network="host"
    )


LOOPBACK = ["127.0.0.1/8", "::1/128"][: 2 if Path("/proc/sys/net/ipv6").exists() else 1]


def test_without_a_network_there_is_only_a_loopback(world: World) -> None:
    links = world.sh("ip -o link; ip route; ip -o addr")
    assert links.startswith("1: lo: <LOOPBACK,UP")
    assert [line.split()[3] for line in links.splitlines()[1:]] == LOOPBACK


def test_pings_and_low_ports_need_no_capability(world: World) -> None:
    names = "ping_group_range ip_unprivileged_port_start"
    seen = world.sh(f"cd /proc/sys/net/ipv4; cat {names}")
    assert seen.split() == ["0", "2147483647", "0"]
    here = [Path("/proc/sys/net/ipv4", name).read_text() for name in names.split()]
    world.run("true", network="host")
    assert [Path("/proc/sys/net/ipv4", name).read_text() for name in names.split()] == here


def test_generated_files_are_seen_in_etc(world: World) -> None:
    hosts, hostname, resolv = (
        world.sh(f"cat /etc/{name}") for name in ("hosts", "hostname", "resolv.conf")
    )
    assert "127.0.0.1\tbox\n" in hosts
    assert hostname == "box\n"
    assert resolv == ""
    resolved = world.sh("cat /etc/resolv.conf", network="host")
    assert resolved == Path("/etc/resolv.conf").read_text()


def test_capabilities_and_privileges_are_cut(world: World) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in world.run("cat", "/proc/self/status")[1].splitlines()
        if ":\t" in line
    )
    eleven = "00000000800405fb"  # podman's: docker's a80425fb without MKNOD, NET_RAW, AUDIT_WRITE
    assert {name: status[name] for name in status if name.startswith("Cap")} == {
        "CapInh": "0000000000000000",
        "CapPrm": eleven,
        "CapEff": eleven,
        "CapBnd": eleven,
        "CapAmb": "0000000000000000",
    }
    assert status["NoNewPrivs"] == "1"
    assert [status[name] for name in ("SigBlk", "SigIgn", "SigCgt")] == ["0" * 16] * 3


def test_privileges_can_be_left_on_and_capabilities_chosen(world: World) -> None:
    status = world.sh(
        "grep -E 'NoNew|CapEff' /proc/self/status",
        no_new_privs=False,
        capabilities=frozenset(["CHOWN", "CHECKPOINT_RESTORE"]),
    )
    assert status.split() == ["CapEff:", "0000010000000001", "NoNewPrivs:", "0"]


def test_another_user_has_no_capabilities_and_owns_its_streams(world: World) -> None:
    seen = world.sh(
        "id -u; id -g; grep -E 'CapEff|CapPrm|CapBnd' /proc/self/status; echo ok > /dev/stdout",
        user=parse_user("1000:1001"),
    ).split()
    assert seen == [
        *("1000", "1001", "CapPrm:", "0000000000000000", "CapEff:", "0000000000000000"),
        *("CapBnd:", "00000000800405fb", "ok"),
    ]


PASSWD = b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n"
GROUP = b"root:x:0:\nweb:x:34:\nextra:x:50:other,web\nmore:x:60:webs\n"


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        pytest.param("", "0 0 0 /root", id="default"),
        pytest.param("web", "33 34 34 50 /srv", id="name"),
        pytest.param("33", "33 34 34 50 /srv", id="uid-with-entry"),
        pytest.param("1234", "1234 0 0 /", id="uid-without-entry"),
        pytest.param("web:extra", "33 50 50 /srv", id="name-and-group"),
        pytest.param("web:77", "33 77 77 /srv", id="name-and-gid"),
        pytest.param("5:6", "5 6 6 /", id="both-numbers"),
    ],
)
def test_users_come_from_the_roots_own_tables(world: World, user: str, ids: str) -> None:
    (world.lower / "etc").mkdir()
    (world.lower / "etc/passwd").write_bytes(PASSWD)
    (world.lower / "etc/group").write_bytes(GROUP)
    seen = world.sh("id -u; id -g; id -G; echo $HOME", user=parse_user(user))
    assert " ".join(seen.split()) == ids


@pytest.mark.parametrize("user", ["nobody", "bad", "0:nogroup"])
def test_an_unknown_user_is_an_error(world: World, user: str) -> None:
    (world.lower / "etc").mkdir()
    (world.lower / "etc/passwd").write_bytes(PASSWD + b"broken\nbad:x:99999999999:1::/:\n")
    error = _failure(world, "true", user=parse_user(user))
    assert error.exit_code == 125
    assert repr(user.split(":")[-1]) in error.brief


def test_devices_and_links(world: World) -> None:
    listed = world.sh(
        "stat -c '%n %t %T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty;"
        "readlink /dev/fd; readlink /dev/ptmx; echo x > /dev/null; head -c 3 /dev/zero | wc -c;"
        "echo y > /dev/full || true"
    ).splitlines()
    assert listed[:8] == [
        "/dev/null 1 3 666",
        "/dev/zero 1 5 666",
        "/dev/full 1 7 666",
        "/dev/random 1 8 666",
        "/dev/urandom 1 9 666",
        "/dev/tty 5 0 666",
        "/proc/self/fd",
        "pts/ptmx",
    ]
    assert listed[8] == "3" and "No space left" in listed[-1]


def test_masked_and_read_only_paths(world: World) -> None:
    script = (
        "for p in interrupts timer_list keys; do [ -e /proc/$p ] && wc -c < /proc/$p; done;"
        "ls /sys/firmware | wc -l;"
        "for p in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/uevent_helper;"
        " do echo x > $p; done; touch /sys/fs/cgroup/x; true"
    )
    lines = world.sh(script).splitlines()
    refusals = [line for line in lines if "Read-only file system" in line]
    assert len(refusals) >= 3
    assert {line for line in lines if line.isdigit()} == {"0"}


def test_nothing_of_the_host_is_left_in_the_mount_table(world: World) -> None:
    mounts = [line.split() for line in world.sh("cat /proc/self/mountinfo").splitlines()]
    assert mounts[0][4] == "/"
    places = [fields[4] for fields in mounts]
    expected = {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/proc/sys"}
    assert expected <= set(places)
    known = ("/proc", "/sys", "/dev", "/etc/")
    assert all(place == "/" or place.startswith(known) for place in places)
    assert not any("shared:" in " ".join(fields) for fields in mounts)


def test_only_the_three_streams_are_inherited(world: World) -> None:
    # The fourth is the directory that ls reads.
    assert world.sh("ls /proc/self/fd").split() == ["0", "1", "2", "3"]


def test_the_umask_is_022_and_the_session_is_its_own(world: World) -> None:
    seen = world.sh("umask; touch /f; stat -c %a /f; grep -E '^(NSsid|NSpgid)' /proc/self/status")
    assert seen.split()[:2] == ["0022", "644"]
    assert (world.upper / "f").stat().st_mode & 0o777 == 0o644
    assert "NSsid:\t1\n" in seen


# ---- the root


def test_changes_stay_in_the_upper_directory(world: World) -> None:
    (world.lower / "kept").write_text("below")
    world.sh("echo changed > /kept; rm /bin/wc")
    assert (world.lower / "kept").read_text() == "below"
    assert (world.upper / "kept").read_text() == "changed\n"
    whiteout = (world.upper / "bin/wc").lstat()
    assert (whiteout.st_mode >> 12, whiteout.st_rdev) == (0o02, 0)
    assert world.sh("cat /kept") == "changed\n"


def test_a_read_only_root_keeps_its_mounts_writable(world: World) -> None:
    seen = world.sh(
        "touch /x 2>&1; touch /tmp/y /dev/shm/z && ls /tmp /dev/shm",
        read_only=True,
        tmpfs=(Tmpfs(target=b"/tmp"),),
    )
    assert seen.splitlines() == [
        "touch: /x: Read-only file system",
        "/dev/shm:",
        "z",
        "",
        "/tmp:",
        "y",
    ]
    assert not (world.upper / "x").exists()


def test_a_hundred_layers(world: World) -> None:
    layers: list[Path] = []
    for number in range(100):
        layer = world.directory / f"layer,{number}:with\\odd name"
        layer.mkdir()
        (layer / "which").write_text(f"{number}\n")
        (layer / f"only{number}").touch()
        layers.insert(0, layer)
    root = world.root(lowers_above=tuple(layers))
    assert world.sh("cat /which; ls / | grep -c only", root=root) == "99\n100\n"


def test_layers_with_very_long_names(world: World) -> None:
    deep = world.directory
    for _ in range(4):
        deep = deep / ("n" * 200)
    deep.mkdir(parents=True)
    (deep / "mark").write_text("deep\n")
    assert world.sh("cat /mark", root=world.root(lowers_above=(deep,))) == "deep\n"


def test_a_failed_overlay_says_what_the_kernel_said(world: World) -> None:
    root = world.root().replace(redirect_dir="sideways")
    error = _failure(world, "true", root=root)
    assert error.exit_code == 125
    assert "mount the root" in error.brief
    assert "redirect_dir" in (error.details or "")


def test_binds_and_tmpfs(world: World, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "f").write_text("host\n")
    one = tmp_path / "one"
    one.write_text("single\n")
    fields: dict[str, object] = {
        "binds": (
            Bind(source=shared, target=b"/mnt/rw"),
            Bind(source=shared, target=b"/mnt/ro", read_only=True),
            Bind(source=one, target=b"/mnt/file"),
        ),
        "tmpfs": (Tmpfs(target=b"/mnt/tmp", size=1 << 20, mode=0o700),),
    }
    seen = world.sh(
        "cat /mnt/rw/f /mnt/file; echo new > /mnt/rw/g; touch /mnt/ro/h || echo refused;"
        "stat -c %a /mnt/tmp; grep -c ' /mnt/tmp .*size=1024k' /proc/mounts",
        **fields,
    )
    assert [line for line in seen.splitlines() if "touch:" not in line] == [
        *("host", "single", "refused", "700", "1")
    ]
    assert (shared / "g").read_text() == "new\n"
    assert not (shared / "h").exists()


def test_a_bind_of_nothing_is_an_error(world: World, tmp_path: Path) -> None:
    error = _failure(world, "true", binds=(Bind(source=tmp_path / "no", target=b"/x"),))
    assert str(tmp_path / "no") in error.brief


def test_stubs_are_on_record(world: World, tmp_path: Path) -> None:
    (world.lower / "etc").mkdir()
    os.utime(world.lower / "etc", ns=(0, 1_234_567_890))
    os.utime(world.upper, ns=(0, 42))
    before = tmp_path / "x"
    before.touch()
    world.sh("true", binds=(Bind(source=before, target=b"/srv/deep/file"),))
    stubs = {stub.path: stub for stub in read_stubs(world.state)}
    assert {path: stub.kind for path, stub in stubs.items()} == {
        b"/proc": "dir",
        b"/sys": "dir",
        b"/dev": "dir",
        b"/etc/hosts": "file",
        b"/etc/hostname": "file",
        b"/etc/resolv.conf": "file",
        b"/srv": "dir",
        b"/srv/deep": "dir",
        b"/srv/deep/file": "file",
    }
    assert stubs[b"/proc"].parent_mtime_ns == 42
    assert stubs[b"/etc/hosts"].parent_mtime_ns == 1_234_567_890
    made = {b"/" + os.fsencode(p.relative_to(world.upper)) for p in world.upper.rglob("*")}
    assert made - {b"/etc"} == set(stubs)
    world.sh("true")
    assert len(read_stubs(world.state)) == len(stubs)


# ---- limits


def test_a_memory_limit_kills_and_is_reported(world: World) -> None:
    outcome, _ = world.run(
        *("sh", "-c", "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done"),
        limits=Limits(memory=16 << 20, memory_swap=16 << 20),
    )
    assert (outcome.exit_code, outcome.oom_killed) == (137, True)
    assert read_state(world.state).oom_killed


def test_a_limit_of_processes_holds(world: World) -> None:
    outcome, written = world.run(
        "sh", "-c", "for i in 1 2 3 4 5 6; do sleep 1 & done; wait", limits=Limits(pids=4)
    )
    assert "can't fork" in written
    assert outcome.exit_code != 0


def test_cgroup_files_say_what_was_asked_for(world: World) -> None:
    script = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes cpu.max 2>/dev/null;"
    script += "cat cpu/cpu.cfs_quota_us pids.max pids/pids.max 2>/dev/null; true"
    seen = world.sh(script, limits=Limits(memory=64 << 20, cpus=1.5, pids=17)).split()
    assert seen in (["67108864", "150000", "17"], ["67108864", "150000", "100000", "17"])


@pytest.mark.skipif(
    not any("devices" in hierarchy.controllers for hierarchy in hierarchies()),
    reason="needs the devices controller of cgroup v1",
)
def test_the_device_cgroup_refuses_the_hosts_disks(world: World) -> None:
    capabilities = frozenset(["MKNOD", "SYS_ADMIN"])
    script = "mknod /dev/sda b 254 0 && head -c 1 /dev/sda"
    outcome, written = world.run("sh", "-c", script, capabilities=capabilities)
    assert outcome.exit_code != 0
    assert "Operation not permitted" in written


# ---- signals


def _started(world: World, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        state = read_state(world.state)
        if state.status == "running" and state.pid is not None:
            return state.pid
        time.sleep(0.01)
    raise AssertionError(f"not started: {process.communicate(timeout=5)}")


def _trapping(*signals: str) -> str:
    traps = "".join(f"trap 'echo got {name}; exit 3' {name};" for name in signals)
    return traps + "echo ready; while true; do sleep 0.05; done"


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_reach_the_command(world: World, name: str) -> None:
    process = spawn(launcher(world, "sh", "-c", _trapping(name)))
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.Signals[f"SIG{name}"])
    written, _ = process.communicate(timeout=10)
    assert (process.returncode, written) == (3, f"got {name}\n".encode())


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("TERM", 143)])
def test_a_command_without_handlers_is_ended_by_signals(world: World, name: str, code: int) -> None:
    process = spawn(launcher(world, "sleep", "60"))
    _started(world, process)
    process.send_signal(signal.Signals[f"SIG{name}"])
    process.communicate(timeout=10)
    assert process.returncode == code
    assert read_state(world.state).exit_code == code


def test_ignored_signals_stay_ignored(world: World) -> None:
    process = spawn(launcher(world, "sh", "-c", "trap '' TERM; echo ready; sleep 0.5; echo end"))
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    written, _ = process.communicate(timeout=10)
    assert (process.returncode, written) == (0, b"end\n")


# ---- nothing is left


def test_many_launches_leave_nothing(world: World) -> None:
    world.run("true")
    before = leftovers(world)
    for _ in range(10):
        world.run("true")
        with pytest.raises(LaunchError):
            world.run("nosuch")
        with pytest.raises(LaunchError):
            world.run("true", user=parse_user("nobody"))
    world.run("sh", "-c", "sleep 60 & sleep 60 & exit 1")
    assert leftovers(world) == before


def test_an_exception_of_the_sink_leaves_nothing(world: World) -> None:
    world.run("true")
    before = leftovers(world)

    def refuse(_: bytes) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run(world.plan("sh", "-c", "echo x; sleep 60"), stdout=refuse)
    assert leftovers(world) == before
    assert read_state(world.state).status == "exited"


def test_a_killed_launcher_leaves_no_container(world: World) -> None:
    before = leftovers(world)
    process = spawn(launcher(world, "sh", "-c", "sleep 1000 & sleep 1000"))
    pid = _started(world, process)
    assert read_state(world.state).is_supervised
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()
    state = read_state(world.state)
    assert (state.status, state.exit_code, state.is_supervised) == ("exited", None, False)
    assert state.cgroups
    cleaned = cleanup_leftovers(world.state)
    assert (cleaned.status, cleaned.cgroups) == ("exited", ())
    assert leftovers(world) == before
    assert world.run("true")[0].exit_code == 0


@pytest.mark.parametrize("delay_ms", [0, 2, 4, 6, 8, 10, 15, 30, 60, 90, 120])
def test_a_launcher_killed_at_any_moment_leaves_no_container(world: World, delay_ms: int) -> None:
    before = leftovers(world)
    process = spawn(launcher(world, "sleep", "1000"))
    while not (world.state / "lock").exists():
        time.sleep(0.0005)
    time.sleep(delay_ms / 1000)
    process.kill()
    process.communicate(timeout=10)
    time.sleep(0.1)
    assert cleanup_leftovers(world.state).status in ("created", "exited")
    assert leftovers(world) == before
    assert world.run("true")[0].exit_code == 0


@pytest.mark.parametrize("delay_ms", [0, 3, 6, 12, 30])
def test_an_interrupted_launcher_cleans_up(world: World, delay_ms: int) -> None:
    before = leftovers(world)
    process = spawn(launcher(world, "sleep", "1000"))
    while not (world.state / "lock").exists():
        time.sleep(0.0005)
    time.sleep(delay_ms / 1000)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert leftovers(world) == before
    assert read_state(world.state).status == "exited"


def test_a_running_container_is_not_started_twice(world: World) -> None:
    lock = acquire_lock(world.state)
    try:
        with pytest.raises(ConflictError):
            world.run("true")
        with pytest.raises(ConflictError):
            cleanup_leftovers(world.state)
    finally:
        os.close(lock)


# ---- streams and terminals


def test_a_stdin_that_is_not_asked_for_is_empty(world: World) -> None:
    process = spawn(launcher(world, "cat"), stdin=subprocess.PIPE)
    written, _ = process.communicate(b"never read", timeout=10)
    assert (process.returncode, written) == (0, b"")


def test_an_interactive_command_reads_stdin(world: World) -> None:
    process = spawn(launcher(world, "cat", interactive="1"), stdin=subprocess.PIPE)
    payload = os.urandom(1 << 20)
    written, _ = process.communicate(payload, timeout=10)
    assert (process.returncode, written) == (0, payload)


def test_large_output_arrives_whole(world: World) -> None:
    _, written = world.run("sh", "-c", "head -c 3000000 /dev/zero; echo end >&2")
    assert written.replace("\0", "") == "end\n"
    assert len(written) == 3_000_004


def _on_a_terminal(command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 41, 101, 0, 0))
    process = spawn(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    return process, master


def _read_until(master: int, mark: bytes) -> bytes:
    seen = b""
    os.set_blocking(master, False)
    deadline = time.monotonic() + 10
    while mark not in seen and time.monotonic() < deadline:
        try:
            seen += os.read(master, 4096)
        except BlockingIOError:
            time.sleep(0.005)
        except OSError:
            break
    assert mark in seen, seen
    return seen


def test_a_terminal_of_its_own(world: World) -> None:
    script = "tty; stty size; ls -l /dev/console; trap 'echo int; exit 5' INT; echo ready;"
    script += "while true; do sleep 0.05; done"
    command = launcher(world, "sh", "-c", script, terminal="1", interactive="1")
    process, master = _on_a_terminal(command)
    before = termios.tcgetattr(master)
    seen = _read_until(master, b"ready")
    assert b"/dev/pts/0\r\n41 101\r\n" in seen
    assert b"136,   0" in seen
    raw = termios.tcgetattr(master)
    assert not raw[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    os.write(master, b"\x03")
    _read_until(master, b"int")
    assert process.wait(10) == 5
    assert termios.tcgetattr(master) == before
    os.close(master)


def test_a_new_window_size_reaches_the_command(world: World) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo ready; while true; do sleep 0.05; done"
    command = launcher(world, "sh", "-c", script, terminal="1", interactive="1")
    process, master = _on_a_terminal(command)
    _read_until(master, b"ready")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 77, 0, 0))
    process.send_signal(signal.SIGWINCH)  # the launcher has no controlling terminal here
    _read_until(master, b"30 77")
    assert process.wait(10) == 0
    os.close(master)


def test_a_terminal_is_restored_after_a_failure(world: World) -> None:
    command = launcher(world, "nosuch", terminal="1", interactive="1")
    process, master = _on_a_terminal(command)
    before = termios.tcgetattr(master)
    _read_until(master, b"PATH")
    assert process.wait(10) == 127
    assert termios.tcgetattr(master) == before
    os.close(master)


def test_a_host_terminal_is_never_handed_in(world: World) -> None:
    script = "test -t 0 || test -t 1 || test -t 2 || echo none; readlink /proc/self/fd/1; cat"
    process, master = _on_a_terminal(launcher(world, "sh", "-c", script, interactive="1"))
    seen = _read_until(master, b"pipe:")
    assert b"none" in seen
    os.write(master, b"typed\n")
    _read_until(master, b"typed\r\ntyped")
    os.write(master, b"\x04")
    assert process.wait(10) == 0
    os.close(master)
