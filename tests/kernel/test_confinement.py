"""The filter of system calls, where a user meets it: run, exec, build steps and their options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from abilities import needs_overlay, needs_root
from containers import needs_busybox

from layerstore.api import Layerstore
from layerstore.errors import LayerstoreError
from layerstore.run import RunOptions

pytestmark = [needs_root, needs_overlay, needs_busybox]

SPEC = """\
layerstore: 1
name: box
from: {host: [busybox]}
steps:
  - run: grep -h -E '^(Seccomp|NoNewPrivs):' /proc/self/status > /step
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Layerstore:
    folder = tmp_path_factory.mktemp("confined")
    (folder / "spec.yaml").write_text(SPEC)
    found = Layerstore(folder / "store")
    found.build(folder / "spec.yaml")
    return found


def status(store: Layerstore, *words: str) -> dict[str, str]:
    """What /proc/self/status says in a container that is run with these options."""
    command = [
        sys.executable, "-m", "layerstore.cli.app", "--root", str(store.settings.root),
        "run", "--rm", *words, "box", "cat", "/proc/self/status",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)


@pytest.mark.parametrize(
    ("words", "filtered", "no_new_privs"),
    [
        ((), "2", "1"),
        (("--security-opt", "no-new-privileges:false"), "2", "0"),
        (("--security-opt", "no-new-privileges:false", "-u", "1000"), "2", "0"),
        (("--security-opt", "seccomp=unconfined"), "0", "1"),
    ],
    ids=["by default", "with setuid programs", "as another user", "unconfined"],
)
def test_a_container_has_the_filter_it_should(
    store: Layerstore, words: tuple[str, ...], filtered: str, no_new_privs: str
) -> None:
    seen = status(store, *words)
    assert (seen["Seccomp"], seen["NoNewPrivs"]) == (filtered, no_new_privs)


def test_a_build_step_has_it_too(store: Layerstore) -> None:
    image = store.store.images.find("box")
    node = store.store.layers.tree(image.diff_ids).lookup(b"step")
    assert node is not None and node.digest is not None
    assert store.store.objects.read(node.digest) == b"NoNewPrivs:\t0\nSeccomp:\t2\n"


def test_a_profile_of_ones_own_is_used(store: Layerstore, tmp_path: Path) -> None:
    profile = tmp_path / "no-mkdir.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    with open(os.devnull, "r+") as nothing:
        fd = nothing.fileno()
        codes = [
            store.run(
                RunOptions(image="box", argv=("mkdir", "/new"), remove=True, seccomp=path),
                stdin=fd, stdout=fd, stderr=fd,
            ).exit_code
            for path in (None, str(profile))
        ]  # fmt: skip
    assert codes == [0, 1]


def test_a_profile_that_is_none_is_refused_before_anything_starts(
    store: Layerstore, tmp_path: Path
) -> None:
    (tmp_path / "bad.json").write_text("{")
    for path in (tmp_path / "bad.json", tmp_path / "missing.json"):
        with pytest.raises(LayerstoreError):
            store.run(RunOptions(image="box", remove=True, argv=("true",), seccomp=str(path)))
    assert store.containers() == []


def test_a_damaged_compiled_profile_is_compiled_again(store: Layerstore) -> None:
    derived = store.settings.root / "derived"
    kept = next(path for path in derived.iterdir() if path.name.startswith("seccomp-"))
    before = kept.read_bytes()
    kept.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert status(store)["Seccomp"] == "2"
    assert kept.read_bytes() == before or len(list(derived.glob("seccomp-*"))) > 1
