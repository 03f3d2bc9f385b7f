"""How commands end: one clear message, an exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from layerstore.cli import output
from layerstore.errors import BuildError, DamagedError, NotFoundError, UsageError
from layerstore.runtime.plan import LaunchError


class SpecError(UsageError):
    """As the spec's: it renders itself."""

    diagnostics = ()


def ends(error: BaseException, *, failed: int = 1) -> int:
    def action() -> int:
        raise error

    return output.guarded(action, failed=failed)


@pytest.mark.parametrize(
    ("error", "failed", "code", "message"),
    [
        (NotFoundError("no 'x'", hint="look"), 1, 1, "layerstore: no 'x'\nhint: look\n"),
        (UsageError("wrong"), 1, 2, "layerstore: wrong\n"),
        (UsageError("wrong"), 125, 125, "layerstore: wrong\n"),
        (DamagedError("bad"), 1, 4, "layerstore: bad\n"),
        (LaunchError("no sh", exit_code=127), 125, 127, "layerstore: no sh\n"),
        (SpecError("a:1:2: error: x\n1 | \ty\x1b"), 1, 2, "a:1:2: error: x\n1 | \ty\\x1b\n"),
        (
            BuildError("it failed\x1b[2J", details="last\x07\nlines"), 1, 1,
            "layerstore: it failed\\x1b[2J\n  last\\x07\n  lines\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/s/x"), 1, 1,
            "layerstore: /s/x: No space left on device\n"
            "hint: make room: layerstore gc frees what nothing needs\n",
        ),
        (OSError(errno.EIO, "Input/output error"), 1, 1, "layerstore: Input/output error\n"),
        (KeyboardInterrupt(), 1, 130, "layerstore: interrupted\n"),
        (KeyboardInterrupt(), 125, 130, "layerstore: interrupted\n"),
        (output.Ended(15), 1, 143, "layerstore: ended by signal 15\n"),
        (MemoryError(), 1, 1, "layerstore: there is not enough memory\n"),
        (
            TypeError("un\nexpected"), 1, 1,
            "layerstore: this is a bug in layerstore: TypeError: un\\nexpected\n"
            "hint: report it with what LAYERSTORE_DEBUG=1 shows in addition\n",
        ),
    ],
)  # fmt: skip
def test_an_error_is_one_message_and_an_exit_code(
    error: BaseException, failed: int, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(error, failed=failed) == code
    written = capsys.readouterr()
    assert (written.out, written.err) == ("", message)


def test_a_traceback_is_for_those_who_ask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERSTORE_DEBUG", "1")
    ends(ValueError("odd"))
    assert "Traceback" in capsys.readouterr().err


def command(*words: str, root: Path) -> list[str]:
    return [sys.executable, "-m", "layerstore.cli.app", "--root", str(root), *words]


def test_a_full_standard_output_fails(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("images", root=tmp_path / "s"), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "layerstore: cannot write standard output: No space left on device\n"


def test_a_reader_that_left_ends_the_command_quietly(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            command("images", root=tmp_path / "s"), stdout=writer, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_closed_standard_output_is_no_file_of_the_store(tmp_path: Path) -> None:
    words = command("images", root=tmp_path / "s")
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *words], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("layerstore: standard output is closed\nhint: ")


def test_the_hot_commands_import_nothing_slow(tmp_path: Path) -> None:
    script = (
        "import sys; from layerstore.cli.app import main; code = main(sys.argv[1:]);"
        "print(sorted({'typer', 'click', 'rich', 'yaml', 'layerstore.api', 'layerstore.build',"
        "'layerstore.spec', 'subprocess', 'argparse', 'socket'} & set(sys.modules)), code)"
    )
    for words in (["ps"], ["rm", "nope"], ["run", "nope"]):
        done = subprocess.run(
            [sys.executable, "-c", script, "--root", str(tmp_path / "s"), *words],
            capture_output=True,
            text=True,
        )
        assert done.stdout.splitlines()[-1][:2] == "[]", (words, done.stdout, done.stderr)
