"""Bases of this very host, made real in a directory and run there under chroot."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from abilities import needs_root, needs_tool

from layerstore.errors import HostError
from layerstore.host.pieces import HostBase, collect, owning_packages, verify

pytestmark = needs_root
DEBIAN = os.path.exists("/var/lib/dpkg/info/coreutils.list")


def materialise(base: HostBase, root: Path) -> Path:
    root.mkdir()
    for file in base.files:
        at = os.fsencode(root) + b"/" + file.path
        if file.kind == "directory":
            os.mkdir(at)
        elif file.kind == "symlink":
            os.symlink(file.link, at)
            continue
        elif file.content is not None:
            Path(os.fsdecode(at)).write_bytes(file.content)
        else:
            assert file.source is not None
            shutil.copyfile(file.source, os.fsdecode(at))
        os.chmod(at, file.mode)
    return root


def run_in(root: Path, base: HostBase, *command: str) -> str:
    done = subprocess.run(
        ["chroot", root, *command], capture_output=True, text=True, env=base.env, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def made(pieces: Sequence[str], root: Path) -> tuple[Path, HostBase]:
    base = collect(pieces)
    return materialise(base, root), base


@needs_tool("busybox")
def test_busybox_runs_and_its_links_are_its_own_list(tmp_path: Path) -> None:
    root, base = made(["busybox"], tmp_path / "root")
    verify(root, base)
    listed = run_in(root, base, "/bin/busybox", "--list").split()
    linked = [os.path.basename(os.fsdecode(f.path)) for f in base.files if f.link == b"busybox"]
    assert sorted({*linked, "busybox"}) == sorted({*listed, "busybox"})
    assert run_in(root, base, "/bin/sh", "-c", "cd /tmp && echo hi > f && cat f && id -un") == (
        "hi\nroot\n"
    )


def test_shell_and_coreutils_run_with_a_utf8_locale(tmp_path: Path) -> None:
    root, base = made(["sh", "bash", "coreutils"], tmp_path / "root")
    verify(root, base)
    script = "printf 'é\\nb\\na\\n' | sort --parallel=2 | wc -m; ls -d /tmp; stdbuf -oL echo out"
    assert run_in(root, base, "/bin/sh", "-c", script) == "6\n/tmp\nout\n"
    assert run_in(root, base, "/bin/bash", "-c", "x=é; echo ${#x}") == "1\n"
    if DEBIAN:
        owners = owning_packages(base)
        assert owners[b"usr/bin/ls" if b"usr/bin/ls" in owners else b"bin/ls"] == "coreutils"


@needs_tool("getent")
def test_names_of_hosts_and_users_resolve_by_our_own_files(tmp_path: Path) -> None:
    root, base = made(["/usr/bin/getent"], tmp_path / "root")
    assert run_in(root, base, "/usr/bin/getent", "hosts", "127.0.0.1").split() == [
        "127.0.0.1",
        "localhost",
    ]
    assert run_in(root, base, "/usr/bin/getent", "passwd", "0") == "root:x:0:0:root:/root:/bin/sh\n"
    assert run_in(root, base, "/usr/bin/getent", "group", "tty") == "tty:x:5:\n"


IMPORTS = "import ssl, ctypes, sqlite3, json, http.server, zoneinfo, threading, uuid, lzma, bz2"


@needs_tool("python3")
def test_python_imports_what_needs_libraries_and_knows_its_locale(tmp_path: Path) -> None:
    root, base = made(["python3", "tzdata"], tmp_path / "root")
    verify(root, base)
    code = (
        f"{IMPORTS}, sys, socket, time; sqlite3.connect(':memory:').execute('select 1');"
        "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join();"
        "print(zoneinfo.ZoneInfo('Europe/Paris'), sys.getfilesystemencoding(),"
        " socket.gethostbyname('localhost'), time.tzname[0])"
    )
    expected = "thread\nEurope/Paris utf-8 127.0.0.1 UTC\n"
    assert run_in(root, base, "python3", "-B", "-c", code) == expected


@needs_tool("python3")
@pytest.mark.parametrize("options", [[], ["--copies"]], ids=["links", "copies"])
def test_a_virtual_environment_runs_with_its_packages(tmp_path: Path, options: list[str]) -> None:
    venv = tmp_path / "venv"
    command = ["python3", "-m", "venv", "--without-pip", *options, str(venv)]
    subprocess.run(command, check=True, capture_output=True)
    [packages] = venv.glob("lib/python3*/site-packages")
    (packages / "mine.py").write_text("where = __file__\n")
    root, base = made([str(venv)], tmp_path / "root")
    code = f"{IMPORTS}, mine; print(mine.where)"
    assert run_in(root, base, f"{venv}/bin/python3", "-B", "-c", code) == f"{packages}/mine.py\n"


def test_a_script_and_an_alternative_run(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env bash\necho ${BASH_VERSION:+bash}\n")
    script.chmod(0o700)
    root, base = made([str(script)], tmp_path / "root")
    assert run_in(root, base, str(script)) == "bash\n"


def libraries_moved_away(tmp_path: Path) -> Path:
    """A host of ls alone whose libraries, but libc, lie where only ld.so.conf finds them."""
    host, base = made(["/bin/ls"], tmp_path / "host")
    [libc] = [f.path for f in base.files if os.path.basename(f.path) == b"libc.so.6"]
    directory = host / os.fsdecode(os.path.dirname(libc))
    others = [one.name for one in directory.glob("lib*.so.*") if not one.name.startswith("libc.")]
    assert others, "ls needs no library but libc on this host"
    (host / "opt/odd").mkdir(parents=True)
    for name in others:
        os.rename(directory / name, host / "opt/odd" / name)
    (host / "etc/ld.so.conf").write_text("/opt/odd\n")
    return host


def test_the_loader_finds_through_our_cache_what_only_ld_so_conf_knew(tmp_path: Path) -> None:
    host = libraries_moved_away(tmp_path)
    base = collect(["/bin/ls"], host_root=host)
    root = materialise(base, tmp_path / "root")
    verify(root, base)
    assert run_in(root, base, "/bin/ls", "/opt") == "odd\n"


def test_verify_names_what_does_not_resolve(tmp_path: Path) -> None:
    host = libraries_moved_away(tmp_path)
    base = collect(["/bin/ls"], host_root=host)
    root = materialise(base, tmp_path / "root")
    (root / "etc/ld.so.cache").unlink()
    with pytest.raises(HostError) as caught:
        verify(root, base)
    assert caught.value.brief == f"1 of the base's programs do not resolve in {root}"
    details = caught.value.details or ""
    assert any(name in details for name in os.listdir(host / "opt/odd"))


def test_a_host_without_merged_usr_gives_a_root_that_runs(tmp_path: Path) -> None:
    host, _ = made(["sh", "coreutils"], tmp_path / "host")
    if not (host / "bin").is_symlink():
        pytest.skip("needs a host with a merged /usr, to take it apart")
    for name in ("bin", "sbin", "lib", "lib64"):
        if (host / name).is_symlink():
            (host / name).unlink()
            os.rename(host / "usr" / name, host / name)
    (host / "usr/bin").mkdir()
    os.rename(host / "bin/env", host / "usr/bin/env")
    base = collect(["sh", "/usr/bin/env", "/bin/ls"], host_root=host)
    root = materialise(base, tmp_path / "root")
    verify(root, base)
    assert not (root / "bin").is_symlink()
    assert run_in(root, base, "/bin/sh", "-c", "/usr/bin/env ls -d /bin") == "/bin\n"


def test_the_same_host_gives_the_same_base() -> None:
    pieces = ["sh", "coreutils", "ca-certificates"]
    assert collect(pieces) == collect(pieces)
