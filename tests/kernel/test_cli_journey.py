"""What a new user types, from a spec to a container and what is left of it."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from abilities import needs_overlay, needs_userns
from containers import needs_busybox

import layerstore
from layerstore.cli.app import main
from layerstore.kernel.process import prctl

# All that a child of another user will need is imported here, while it can be read.
for found in pkgutil.walk_packages(layerstore.__path__, "layerstore."):
    importlib.import_module(found.name)

pytestmark = [needs_overlay, needs_busybox]

NOBODY = 65534
PR_SET_DUMPABLE = 4

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

SPEC = """\
layerstore: 1
name: box
from: {host: [busybox]}
steps:
  - write: {to: /srv/kept, text: "kept\\n"}
  - write: {to: /srv/gone, text: "gone\\n"}
  - run: "echo from a step; echo made > /srv/made"
config:
  cmd: [cat, /srv/kept]
  env: {GREETING: hello}
"""


def command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "layerstore.cli.app", "--root", str(root), *words]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the image ``box``."""
    folder = tmp_path_factory.mktemp("journey")
    (folder / "spec.yaml").write_text(SPEC)
    done = subprocess.run(
        command(folder / "store", "build", str(folder)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sha256:")
    assert "[3/3] | from a step\n" in done.stderr
    return folder / "store"


@pytest.fixture
def cli(built: Path) -> Cli:
    def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:  # Any: run's own
        return subprocess.run(command(built, *words), capture_output=True, text=True, **options)

    return run


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_container_changes_its_own_layer_alone(cli: Cli) -> None:
    assert said(cli("run", "--rm", "box")) == "kept\n"
    script = "rm /srv/gone; echo more >> /srv/kept; echo new > /srv/new; exit 3"
    done = cli("run", "--name", "work", "box", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    changes = said(cli("diff", "work")).splitlines()
    assert [line for line in changes if "/srv/" in line] == [
        "D /srv/gone", "C /srv/kept", "A /srv/new",
    ]  # fmt: skip
    assert said(cli("run", "--rm", "box", "ls", "/srv")) == "gone\nkept\nmade\n"
    second = cli("run", "--name", "work", "box")
    assert second.returncode == 125
    assert second.stderr.startswith("layerstore: the container name 'work' is taken\nhint: ")
    image_id = said(cli("commit", "work", "box:changed")).strip()
    assert said(cli("run", "--rm", image_id[7:19], "cat", "/srv/kept")) == "kept\nmore\n"
    assert [line for line in said(cli("diff", "box", "box:changed")).splitlines()
            if "/srv/" in line] == ["D /srv/gone", "C /srv/kept", "A /srv/new"]  # fmt: skip
    (listed,) = json.loads(said(cli("ps", "-a", "--json")))
    assert (listed["name"], listed["image"], listed["status"], listed["exit_code"]) == (
        "work", "box", "exited", 3,
    )  # fmt: skip
    assert json.loads(said(cli("inspect", "work")))["state"]["exit_code"] == 3
    assert said(cli("ps")).splitlines()[1:] == []
    assert said(cli("rm", "work")) == "work\n"
    assert "checked 2 images" in said(cli("fsck", "--read-data"))
    assert said(cli("df")).splitlines()[-1] == "adds up to du: yes"


def test_the_words_after_the_image_belong_to_the_command(cli: Cli) -> None:
    shown = said(cli("run", "--rm", "-e", "A=1", "-eB=2", "box", "sh", "-c",
                     'echo $A $B $GREETING "$@"', "--", "--rm", "--", "-x"))  # fmt: skip
    assert shown == "1 2 hello --rm -- -x\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("box", "nocmd"), 127, "layerstore: 'nocmd' is not in the container's PATH"),
        (("box", "/srv"), 126, "layerstore: '/srv' can't be started"),
        (("nope",), 125, "layerstore: there is no image 'nope'"),
        (("--memory", "x", "box"), 125, "layerstore: 'x' is not a size"),
        (("--nope", "box"), 125, "layerstore: there is no option '--nope'"),
        (("-v", "rel:/x", "box"), 125, "layerstore: 'rel' is not an absolute path"),
    ],
    ids=["127", "126", "image", "size", "option", "volume"],
)
def test_what_does_not_start_has_dockers_exit_codes(
    words: tuple[str, ...], code: int, message: str, cli: Cli
) -> None:
    done = cli("run", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(message)
    assert json.loads(said(cli("ps", "-a", "--json"))) == []


def test_standard_input_is_read_only_if_asked(cli: Cli) -> None:
    assert said(cli("run", "--rm", "box", "cat", input="typed\n")) == ""
    assert said(cli("run", "--rm", "-i", "box", "cat", input="typed\n")) == "typed\n"


def test_confinement_is_what_the_options_say(cli: Cli) -> None:
    shown = said(cli(
        "run", "--rm", "-h", "named", "-w", "/made/here", "-u", "5:6", "--read-only",
        "--tmpfs", "/t:size=1m", "box", "sh", "-c",
        "hostname; pwd; id -u; id -g; touch /srv/x 2>/dev/null || echo read-only; touch /t/x",
    ))  # fmt: skip
    assert shown == "named\n/made/here\n5\n6\nread-only\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_ends_the_command_and_cleans_up(
    signum: signal.Signals, built: Path, cli: Cli
) -> None:
    running = subprocess.Popen(
        command(built, "run", "--rm", "--name", "sleeper", "box", "sh", "-c",
                "echo up; exec sleep 60"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
    (listed,) = json.loads(said(cli("ps", "--json")))
    assert (listed["name"], listed["status"]) == ("sleeper", "running")
    refused = cli("rm", "sleeper")
    assert (refused.returncode, refused.stderr.split("\n")[0]) == (
        1, "layerstore: the container sleeper is running",
    )  # fmt: skip
    running.send_signal(signum)
    _, err = running.communicate(timeout=10)
    assert (running.returncode, err) == (128 + signum, "")
    assert json.loads(said(cli("ps", "-a", "--json"))) == []
    assert os.listdir(built / "tmp") == []


def test_rm_force_ends_what_runs(built: Path, cli: Cli) -> None:
    running = subprocess.Popen(
        command(built, "run", "--name", "stuck", "box", "sleep", "60"), stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 10
    while not said(cli("ps", "-q")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert said(cli("rm", "-f", "stuck")) == "stuck\n"
    _, err = running.communicate(timeout=10)
    assert (running.returncode, err) == (137, b"")


def test_a_mounted_image_is_read_only_until_it_is_unmounted(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "at"
    missing = cli("mount", "box", str(target))
    assert (missing.returncode, missing.stderr.split("\n")[0]) == (
        1, f"layerstore: there is no directory {target}",
    )  # fmt: skip
    target.mkdir()
    assert said(cli("mount", "box", str(target))) == f"{target}\n"
    try:
        assert (target / "srv/made").read_text() == "made\n"
        with pytest.raises(OSError, match="Read-only"):
            (target / "x").write_text("x")
        second = cli("mount", "box", str(target))
        assert (second.returncode, second.stderr.split("\n")[0]) == (
            1, f"layerstore: something is mounted at {target} already",
        )  # fmt: skip
    finally:
        said(cli("umount", str(target)))
    assert list(target.iterdir()) == []
    assert cli("umount", str(target)).returncode == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_build_and_not_only_its_step(
    signum: signal.Signals, built: Path, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "spec.yaml").write_text(
        SPEC.replace("name: box", "name: ended").replace("from a step;", "up; exec sleep 1000;")
    )
    building = subprocess.Popen(
        command(built, "build", str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert building.stderr is not None
    while b"| echo up" not in (line := building.stderr.readline()) and b"| up" not in line:
        assert line
    building.send_signal(signum)
    out, err = building.communicate(timeout=10)
    said_last = "interrupted" if signum == signal.SIGINT else f"ended by signal {signum}"
    assert (building.returncode, out) == (128 + signum, b"")
    assert err.decode().splitlines()[-1] == f"layerstore: {said_last}"
    assert "ended" not in said(cli("images"))
    assert list((built / "tmp").iterdir()) == []


def test_containers_are_stopped_and_removed_on_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)

    def call(*words: str) -> str:
        return said(subprocess.run(command(disk / "s", *words), capture_output=True, text=True))

    try:
        (tmp_path / "spec.yaml").write_text(SPEC)
        built = subprocess.run(command(disk / "s", "build", str(tmp_path)), capture_output=True)
        assert built.returncode == 0
        for name in ("stopped", "removed"):
            call("run", "-d", "--name", name, "box", "sleep", "1000")
        with (
            (disk / "filler").open("wb", buffering=0) as filler,
            pytest.raises(OSError, match="No"),
        ):
            while True:
                filler.write(bytes(1 << 20))
        assert call("stop", "-t", "0", "stopped") == "stopped\n"
        assert call("rm", "-f", "removed") == "removed\n"
        (listed,) = json.loads(call("ps", "-a", "--json"))
        assert (listed["name"], listed["status"], listed["exit_code"]) == ("stopped", "exited", 137)
        assert call("rm", "stopped") == "stopped\n"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_step_that_fails_says_where_and_shows_its_output(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(
        SPEC.replace("name: box", "name: failing").replace("from a step;", "sorry; exit 9;")
    )
    done = cli("build", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"layerstore: {tmp_path}/spec.yaml:7: " in done.stderr
    assert "ended with exit code 9\n  sorry\n" in done.stderr
    assert "failing" not in said(cli("images"))


@needs_userns
def test_a_plain_user_has_a_store_of_their_own(tmp_path: Path) -> None:
    spec = SPEC.replace("echo made > /srv/made", "echo made > /srv/made; id -u")
    with tempfile.TemporaryDirectory(prefix="layerstore-", dir="/var/tmp") as home:
        Path(home, "spec.yaml").write_text(spec)
        os.chown(home, NOBODY, NOBODY)

        def call(*words: str) -> tuple[int, str, str]:
            return as_nobody(home, tmp_path, *words)

        # Libraries load parts of themselves when first used: by us, who may read them.
        for words in (["images", "--json"], ["build", home], ["df"]):
            main(["--root", str(tmp_path / "warm"), *words])
        assert call("images", "--json") == (0, "[]\n", "")
        code, out, err = call("build", home)
        assert (code, out[:7]) == (0, "sha256:"), err
        assert "[3/3] | 0\n" in err
        assert call("run", "--rm", "box", "cat", "/srv/made") == (0, "made\n", "")
        code, out, err = call("mount", "box")
        assert (code, out, err.split("\n")[0]) == (
            1,
            "",
            "layerstore: mounting on the host needs root",
        )
        code, _, err = call("--root", "/var/lib/layerstore-nope", "images")
        assert (code, err.split("\n")[0]) == (
            1, "layerstore: the store /var/lib/layerstore-nope cannot be used: Permission denied",
        )  # fmt: skip
        assert call("fsck", "--read-data")[0] == 0


def as_nobody(home: str, scratch: Path, *words: str) -> tuple[int, str, str]:
    """A command of another user, in a child: that user may not be able to start our interpreter."""
    streams = [os.open(scratch / name, os.O_CREAT | os.O_TRUNC | os.O_RDWR) for name in "oe"]
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            for fd, stream in enumerate(streams, 1):
                os.dup2(stream, fd)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            prctl(PR_SET_DUMPABLE, 1)  # as after an exec: /proc/self is the user's own
            os.environ["HOME"] = home
            for name in ("LAYERSTORE_ROOT", "XDG_DATA_HOME"):
                os.environ.pop(name, None)
            code = main(list(words))
            sys.stdout.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    for stream in streams:
        os.close(stream)
    out, err = ((scratch / name).read_text() for name in "oe")
    return os.waitstatus_to_exitcode(status), out, err
