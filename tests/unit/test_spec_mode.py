"""Modes and owners; chmod(1) is the judge of what a symbolic mode means."""

from __future__ import annotations

import random
import stat
import subprocess
from pathlib import Path

import pytest
from abilities import needs_root, needs_tool

from layerstore.spec import KEEP, NORMAL, Mode, Owner, parse


@pytest.mark.parametrize(
    ("text", "old", "is_dir", "new"),
    [
        ("0644", 0o777, False, 0o644),
        ("0644", 0o777, True, 0o644),
        ("04755", 0o600, False, 0o4755),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("u=rwX,go=rX", 0o700, False, 0o755),
        ("u=rwX,go=rX", 0o700, True, 0o755),
        ("a-x,u+X", 0o755, False, 0o644),
        ("a-x,u+X", 0o755, True, 0o744),
        ("g=u", 0o750, False, 0o770),
        ("+x", 0o644, False, 0o755),
        ("o=", 0o777, False, 0o770),
        ("u=rw", 0o4755, False, 0o655),
        ("g=rx", 0o2775, True, 0o2755),
        ("g-s", 0o2775, True, 0o775),
        ("+t", 0o777, True, 0o1777),
    ],
)
def test_a_mode_changes_the_old_one(text: str, old: int, is_dir: bool, new: int) -> None:
    mode = Mode.parse(text)
    assert mode is not None
    assert oct(mode.apply(old, is_dir)) == oct(new)


@pytest.mark.parametrize(
    "text",
    [
        "644",
        "0o644",
        "00",
        "064",
        "0888",
        "004755",
        "4755",
        "u",
        "u=q",
        "u=rw,",
        ",",
        "",
        "=gu",
        "0644 ",
    ],
)
def test_what_is_no_mode_is_refused(text: str) -> None:
    assert Mode.parse(text) is None


@pytest.mark.parametrize(
    ("old", "is_dir", "new"),
    [
        (0o100664, False, 0o644),
        (0o100755, False, 0o755),
        (0o100700, False, 0o755),
        (0o100611, False, 0o644),
        (0o104755, False, 0o755),
        (0o042770, True, 0o755),
        (0o041777, True, 0o755),
    ],
    ids=oct,
)
def test_the_normal_mode_is_gits_model(old: int, is_dir: bool, new: int) -> None:
    assert oct(NORMAL.apply(old, is_dir)) == oct(new)


def test_keep_keeps_the_permission_bits() -> None:
    assert KEEP.apply(0o104751, False) == 0o4751


@needs_root
@needs_tool("chmod")
def test_symbolic_modes_mean_what_they_mean_to_chmod(tmp_path: Path) -> None:
    rng = random.Random(2)
    file, directory = tmp_path / "f", tmp_path / "d"
    file.touch()
    directory.mkdir()
    for _ in range(120):
        clauses = []
        for _ in range(rng.randint(1, 3)):
            clause = "".join(rng.sample("ugoa", rng.randint(1, 2)))
            for _ in range(rng.randint(1, 2)):
                letters = "".join(rng.sample("rwxXst", rng.randint(0, 4)))
                clause += rng.choice("=+-") + rng.choice(["u", "g", "o", letters, letters])
            clauses.append(clause)
        text, old = ",".join(clauses), rng.randrange(0o10000)
        mode = Mode.parse(text)
        assert mode is not None, text
        for path in (file, directory):
            path.chmod(old)
            subprocess.run(["chmod", text, path], check=True)
            real = stat.S_IMODE(path.stat().st_mode)
            assert (text, oct(mode.apply(old, path is directory))) == (text, oct(real))


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("1000:100", Owner(1000, 100)),
        ("1000", Owner(1000, 1000)),
        ("0", Owner(0, 0)),
        ("app:app", Owner("app", "app")),
        ("app", Owner("app", None)),
        ("www-data:33", Owner("www-data", 33)),
        ("4294967294", Owner(4294967294, 4294967294)),
        ("4294967295", None),
        ("0:4294967295", None),
        ("-1", None),
        (":5", None),
        ("a:", None),
        ("a b", None),
        ("1a", None),
        ("", None),
        ("٣", None),
    ],
)
def test_owners_are_numbers_or_names(text: str, owner: Owner | None) -> None:
    assert Owner.parse(text) == owner


def copy_mode(fields: str) -> Mode:
    text = (
        "layerstore: 1\nstages:\n  a: {from: scratch}\n"
        f"  b: {{from: scratch, steps: [{{copy: {{{fields}}}}}]}}"
    )
    (step,) = parse(text.encode(), filename="s").stages[1].steps
    mode = getattr(step, "mode", None)
    assert isinstance(mode, Mode)
    return mode


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], ids=oct)
def test_a_symbolic_mode_of_a_copied_file_is_the_same_whatever_the_umask_was(umask: int) -> None:
    mode = copy_mode("src: a, to: /a, mode: 'g+w,o-rx'")
    assert oct(mode.apply(0o666 & ~umask, False)) == oct(0o660)
    assert oct(mode.apply(0o777 & ~umask, True)) == oct(0o770)


def test_files_of_a_stage_keep_their_modes_by_default() -> None:
    assert copy_mode("from: a, src: /a, to: /a") == KEEP
    assert copy_mode("from: a, src: /a, to: /a, mode: o=").apply(0o2775, False) == 0o2770
    assert copy_mode("src: a, to: /a") == NORMAL
