"""Files copied between containers and the host, running or stopped, friendly or not."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest
from abilities import needs_overlay, needs_root
from containers import needs_busybox
from lives import Lives, lives, store_root

from layerstore import commit as committing
from layerstore import life
from layerstore.errors import ConflictError, LayerstoreError, NotFoundError, UsageError
from layerstore.runtime import copying
from layerstore.runtime.copying import Place
from layerstore.runtime.plan import Tmpfs
from layerstore.runtime.state import cleanup_leftovers
from layerstore.store.containers import Container

__all__ = ["lives", "store_root"]
pytestmark = [needs_root, needs_overlay, needs_busybox]


@pytest.fixture(params=["running", "stopped"])
def container(lives: Lives, request: pytest.FixtureRequest) -> Container:
    made = lives.run(
        "mkdir -p /d/sub /etc; echo inside > /d/f; echo deep > /d/sub/g; ln -s f /d/link;"
        "ln -s /d /dirlink; chmod 4711 /d/f; touch -t 200001010000 /d/f; mkfifo /d/fifo; echo ok;"
        "sleep 1000"
    )
    lives.until_logged(made, b"ok")
    if request.param == "stopped":
        life.stop(lives.store, made.name)
    return made


def _out(lives: Lives, container: Container, path: str, target: Path | str, **how: bool) -> None:
    life.copy_from(lives.store, container.name, path.encode(), os.fsencode(target), **how)


def _in(lives: Lives, container: Container, source: Path | str, path: str, **how: bool) -> None:
    life.copy_to(lives.store, container.name, os.fsencode(source), path.encode(), **how)


def test_a_file_keeps_its_time_and_its_mode_but_no_power(
    lives: Lives, container: Container, tmp_path: Path
) -> None:
    _out(lives, container, "/d/f", tmp_path / "copy")
    status = (tmp_path / "copy").stat()
    assert (tmp_path / "copy").read_text() == "inside\n"
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o711, 946684800)
    _out(lives, container, "/d/f", tmp_path / "archive", archive=True)
    assert stat.S_IMODE((tmp_path / "archive").stat().st_mode) == 0o4711


@pytest.mark.parametrize(
    ("path", "target", "expected"),
    [
        pytest.param("/d/f", "there", {"there/f"}, id="file-into-directory"),
        pytest.param("/d/f", "new", {"new"}, id="file-under-its-name"),
        pytest.param("/d", "there", {"there/d/f", "there/d/sub/g", "there/d/link", "there/d/fifo"},
                     id="directory-into-directory"),
        pytest.param("/d", "new", {"new/f", "new/sub/g", "new/link", "new/fifo"},
                     id="directory-under-its-name"),
        pytest.param("/d/.", "there", {"there/f", "there/sub/g", "there/link", "there/fifo"},
                     id="content"),
        pytest.param("/d/sub/.", "new", {"new/g"}, id="content-under-its-name"),
        pytest.param("/d/link", "new", {"new"}, id="link-itself"),
        pytest.param("/dirlink/sub", "new", {"new/g"}, id="through-a-link"),
    ],
)  # fmt: skip
def test_where_copies_go(
    lives: Lives, container: Container, tmp_path: Path, path: str, target: str, expected: set[str]
) -> None:
    base = tmp_path / "base"
    (base / "there").mkdir(parents=True)
    _out(lives, container, path, base / target)
    found = {str(p.relative_to(base)) for p in base.rglob("*") if p.is_symlink() or not p.is_dir()}
    assert found == expected
    if path == "/d/link":
        assert os.readlink(base / "new") == "f"


def test_files_go_in_and_are_seen(lives: Lives, container: Container, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "b").write_bytes(os.urandom(3_000_000))
    (tree / "sparse").write_bytes(b"x")
    os.truncate(tree / "sparse", 50_000_000)
    _in(lives, container, tree, "/in")
    _out(lives, container, "/in", tmp_path / "back")
    for name in ("a/b", "sparse"):
        assert (tmp_path / "back" / name).read_bytes() == (tree / name).read_bytes()
    assert (tmp_path / "back/sparse").stat().st_blocks < 1000
    if lives.state(container).status == "running":
        assert lives.exec(container, "wc", "-c", "/in/a/b")[1].split() == ["3000000", "/in/a/b"]
    kinds = {c.path: c.kind for c in committing.changes(lives.store, container.name)}
    assert kinds[b"/in/a/b"] == "A"


@pytest.mark.parametrize(
    ("path", "target", "error"),
    [
        pytest.param("/nosuch", "x", NotFoundError, id="no-source"),
        pytest.param("/d/f", "no/directory/x", NotFoundError, id="no-directory"),
        pytest.param("/d/f", "new/", NotFoundError, id="no-such-target-directory"),
        pytest.param("/d/f/", "x", UsageError, id="file-as-directory"),
        pytest.param("/d", "file", ConflictError, id="directory-over-file"),
        pytest.param("/d/f", "clash", ConflictError, id="file-over-directory"),
    ],
)
def test_what_can_not_be_copied(
    lives: Lives, container: Container, tmp_path: Path, path: str, target: str,
    error: type[LayerstoreError],
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("mine")
    (tmp_path / "clash" / "f").mkdir(parents=True)
    with pytest.raises(error):
        _out(lives, container, path, f"{tmp_path}/{target}")
    assert (tmp_path / "file").read_text() == "mine"


def test_mounts_of_a_running_container_are_seen(lives: Lives, tmp_path: Path) -> None:
    container = lives.sleeper(tmpfs=(Tmpfs(target=b"/t"),))
    (tmp_path / "f").write_text("hello\n")
    _in(lives, container, tmp_path / "f", "/t/f")
    assert lives.exec(container, "cat", "/t/f")[1] == "hello\n"
    assert not (lives.upper(container) / "t/f").exists()
    _in(lives, container, tmp_path / "f", "/etc/hosts")  # a mount point: rewritten in place
    assert lives.exec(container, "cat", "/etc/hosts")[1] == "hello\n"


def test_the_kernels_views_are_read_and_not_written(lives: Lives, tmp_path: Path) -> None:
    container = lives.run("mkdir /x; ln -s /proc/sys/kernel /x/k; echo ok; sleep 1000")
    lives.until_logged(container, b"ok")
    _out(lives, container, "/proc/1/status", tmp_path / "status")
    assert "NoNewPrivs:\t1" in (tmp_path / "status").read_text()
    (tmp_path / "core_pattern").write_text("|/evil")
    for target in ("/proc/sys/kernel/core_pattern", "/x/k", "/proc/self/attr/x", "/sys/kernel"):
        with pytest.raises((UsageError, NotFoundError, OSError)):
            _in(lives, container, tmp_path / "core_pattern", target)
    assert "evil" not in Path("/proc/sys/kernel/core_pattern").read_text()


# ---- containers that attack the copy


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of the host that nothing may touch or show."""
    made = tmp_path / "victim"
    made.mkdir()
    (made / "secret").write_text("host's")
    return made


@pytest.mark.parametrize("link", ["absolute", "upward", "magic"])
def test_links_lead_nowhere_out(lives: Lives, tmp_path: Path, victim: Path, link: str) -> None:
    """CVE-2018-15664, CVE-2019-14271: paths are resolved in the container's root."""
    to = {"absolute": str(victim), "upward": "../" * 40 + str(victim)[1:],
          "magic": f"/proc/{os.getpid()}/root{victim}"}[link]  # fmt: skip
    container = lives.run(f"ln -s {to} /evil; mkdir /d; ln -s {to}/secret /d/s; echo ok; sleep 100")
    lives.until_logged(container, b"ok")
    with pytest.raises(NotFoundError):
        _out(lives, container, "/evil/secret", tmp_path / "stolen")
    (tmp_path / "payload").write_text("theirs")
    with pytest.raises(NotFoundError):
        _in(lives, container, tmp_path / "payload", "/evil/secret")
    _in(lives, container, tmp_path / "payload", "/d/s")  # replaces the link, not what it names
    assert (victim / "secret").read_text() == "host's"
    assert os.listdir(victim) == ["secret"]
    _out(lives, container, "/d", tmp_path / "out")
    assert (tmp_path / "out/s").read_text() == "theirs"


def test_links_in_a_copied_tree_are_not_followed_on_the_host(
    lives: Lives, tmp_path: Path, victim: Path
) -> None:
    """CVE-2026-41568: what is there already may have been placed by an earlier copy."""
    script = f"mkdir -p /one /two/d; ln -s {victim} /one/d; echo theirs > /two/d/secret"
    container = lives.run(script + "; echo ok; sleep 1000")
    lives.until_logged(container, b"ok")
    (tmp_path / "target").mkdir()
    _out(lives, container, "/one/.", tmp_path / "target")
    assert os.readlink(tmp_path / "target/d") == str(victim)
    with pytest.raises(ConflictError):
        _out(lives, container, "/two/.", tmp_path / "target")
    assert (victim / "secret").read_text() == "host's"


def test_a_race_of_directory_and_link_is_never_won(
    lives: Lives, tmp_path: Path, victim: Path
) -> None:
    """CVE-2018-15664, as its exploit does it: a component is swapped while it is resolved."""
    container = lives.run(
        f"mkdir /real; echo mine > /real/secret; ln -s {victim} /link; mv /real /swap; echo ok;"
        "while :; do mv /swap /real; mv /link /swap; mv /swap /link; mv /real /swap; done"
    )
    lives.until_logged(container, b"ok")
    seen = set()
    deadline = time.monotonic() + 2
    with life._root(lives.store, container.name) as root, life._host_root() as host:
        while time.monotonic() < deadline:
            try:
                copying.copy(
                    Place(root_fd=root, path=b"/swap/secret"),
                    Place(root_fd=host, path=os.fsencode(tmp_path / "out")),
                )
                seen.add((tmp_path / "out").read_text())
            except (NotFoundError, OSError):
                seen.add("nothing")
    assert seen <= {"mine\n", "nothing"}
    assert "mine\n" in seen


def test_devices_and_sockets_are_left_out(lives: Lives, tmp_path: Path) -> None:
    container = lives.sleeper()
    result = life.copy_from(lives.store, container.name, b"/dev/null", os.fsencode(tmp_path / "n"))
    assert result.skipped == (b"n",)
    assert not (tmp_path / "n").exists()


def test_a_stopped_container_is_not_started_while_it_is_copied(lives: Lives) -> None:
    container = life.create(lives.store, lives.options("true"))
    with life._root(lives.store, container.name), pytest.raises(ConflictError):
        cleanup_leftovers(lives.state_dir(container))
    assert threading.active_count() == 1
