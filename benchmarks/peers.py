"""Foreign tools, each with a store of its own below a directory that the caller removes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import Unavailable
from benchmarks.places import PROJECT, check, disk_usage, timed, tool


class Peer:
    """A program with the options that keep it in its own directory."""

    def __init__(self, home: Path, prefix: list[str], env: Mapping[str, str], stored: Path) -> None:
        self.home = home
        self._prefix = prefix
        self._env = env
        self._stored = stored

    def __call__(self, *words: object) -> str:
        return check([*self._prefix, *map(str, words)], env=self._env)

    def timed(self, *words: object) -> float:
        return timed([*self._prefix, *map(str, words)], env=self._env)

    def stored(self) -> int:
        """Bytes that its store takes on disk."""
        return disk_usage(self._stored)


def hide_hybrid_cgroups() -> None:
    """A cgroup v2 beside v1 is unmounted in this mount namespace: some crun versions refuse it."""
    if os.geteuid() == 0 and os.path.ismount("/sys/fs/cgroup/unified"):
        check(["umount", "/sys/fs/cgroup/unified"])


@contextmanager
def podman(home: Path) -> Iterator[Peer]:
    with _containers_storage("podman", home, _PODMAN_OPTIONS) as peer:
        yield peer


@contextmanager
def buildah(home: Path) -> Iterator[Peer]:
    with _containers_storage("buildah", home, ()) as peer:
        yield peer


_PODMAN_OPTIONS = ("--cgroup-manager", "cgroupfs", "--events-backend", "none")


@contextmanager
def _containers_storage(name: str, home: Path, options: tuple[str, ...]) -> Iterator[Peer]:
    tool(name)
    home.mkdir(exist_ok=True)
    places = ["--root", str(home / "root"), "--runroot", str(home / "run")]
    prefix = [name, *places, "--storage-driver", "overlay", *options]
    if name == "podman":
        prefix += ["--tmpdir", str(home / "tmp")]
    try:
        yield Peer(home, prefix, {"TMPDIR": str(home)}, home / "root")
    finally:
        for mount in _mounts_below(home):
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)


def _mounts_below(home: Path) -> list[str]:
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        found = [line.split()[1] for line in file]
    return [mount for mount in reversed(found) if mount.startswith(f"{home}/")]


@contextmanager
def docker(home: Path) -> Iterator[Peer]:
    """The client of a daemon that this starts and ends."""
    tool("docker")
    tool("dockerd")
    if os.geteuid() != 0:
        raise Unavailable("its daemon needs root")
    home.mkdir(exist_ok=True)
    socket = home / "socket"
    command = [
        "dockerd", "--data-root", str(home / "data"), "--exec-root", str(home / "exec"),
        "--host", f"unix://{socket}", "--pidfile", str(home / "pid"), "--iptables=false",
        "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2",
    ]  # fmt: skip
    with (home / "log").open("wb") as log:
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for(socket, daemon, home / "log")
            env = {
                "DOCKER_HOST": f"unix://{socket}", "DOCKER_CONFIG": str(home / "config"),
                # The client may have been packaged without buildx.
                "DOCKER_BUILDKIT": "1" if _has_buildx() else "0",
            }  # fmt: skip
            yield Peer(home, ["docker"], env, home / "data")
        finally:
            if daemon.poll() is None:
                daemon.terminate()
                daemon.wait(60)
            for mount in _mounts_below(home):
                subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
            shutil.rmtree(home, ignore_errors=True)


def _has_buildx() -> bool:
    command = ["docker", "buildx", "version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _wait_for(socket: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while not socket.exists() and daemon.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if daemon.poll() is not None or not socket.exists():
        lines = log.read_text(errors="replace").splitlines()
        raise Unavailable(f"its daemon does not start: {lines[-1] if lines else ''}"[:160])


def bundle(home: Path, root_tar: Path) -> Path:
    """A runtime bundle whose command is ``true``; crun and runc take the same one."""
    (home / "rootfs").mkdir(parents=True)
    check(["tar", "-x", "-p", "--numeric-owner", "-f", str(root_tar), "-C", str(home / "rootfs")])
    check([tool("runc"), "spec", "--bundle", str(home)])
    config = json.loads((home / "config.json").read_text())
    config["process"]["args"] = ["true"]
    config["process"]["terminal"] = False
    config["linux"]["seccomp"] = seccomp(
        json.loads((PROJECT / "layerstore/data/seccomp.json").read_text()),
        config["process"]["capabilities"]["bounding"],
    )
    (home / "config.json").write_text(json.dumps(config))
    return home


# Any: JSON, in docker's form and in that of the OCI runtime specification.
def seccomp(profile: dict[str, Any], capabilities: Collection[str]) -> dict[str, Any]:
    """Our own profile as a bundle's ``linux.seccomp``: the runtimes do the same work as we do."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "")
    syscalls = []
    for rule in profile["syscalls"]:
        includes, excludes = rule.get("includes", {}), rule.get("excludes", {})
        if (
            set(includes.get("caps", ())) <= set(capabilities)
            and machine in includes.get("arches", (machine,))
            and not set(excludes.get("caps", ())) & set(capabilities)
            and machine not in excludes.get("arches", ())
        ):
            kept = ("names", "action", "errnoRet", "args")
            syscalls.append({key: rule[key] for key in kept if key in rule})
    native = f"SCMP_ARCH_{os.uname().machine.upper()}"
    also = [row["subArchitectures"] for row in profile["archMap"] if row["architecture"] == native]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [native, *(also[0] if also else ())],
        "syscalls": syscalls,
    }


def versions() -> list[str]:
    """A line for each peer that is installed."""
    found = []
    for name, *words in (
        ("docker", "--version"), ("podman", "--version"), ("buildah", "--version"),
        ("crun", "--version"), ("runc", "--version"), ("bwrap", "--version"), ("tar", "--version"),
    ):  # fmt: skip
        try:
            said = check([tool(name), *words]).splitlines()[0]
        except Unavailable as error:
            said = f"{name}: {error}"
        found.append(said if name in said.lower() else f"{name}: {said}")
    return found
