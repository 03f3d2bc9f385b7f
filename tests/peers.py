"""Foreign tools, each with a store of its own that goes away with the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from facts import Facts, of_image
from richimage import put_rich_image

from layerstore.store.images import Image
from layerstore.store.store import Store


class Tool:
    """A program with options that keep it in its own directory."""

    def __init__(self, *prefix: str, **environment: str) -> None:
        self._prefix = prefix
        self._environment = os.environ | environment

    def __call__(self, *words: object) -> str:
        result = self._run(words)
        if result.returncode:
            pytest.fail(f"{result.args}: {result.stderr}")
        return result.stdout.strip()

    def error(self, *words: object) -> str:
        """What the tool says when it fails, as it must."""
        result = self._run(words)
        assert result.returncode != 0
        return result.stderr

    def _run(self, words: tuple[object, ...]) -> subprocess.CompletedProcess[str]:
        command = [*self._prefix, *map(str, words)]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=self._environment,
            check=False, text=True, errors="replace",
        )  # fmt: skip

    # Any: what the tool prints as JSON.
    def json(self, *words: object) -> Any:
        return json.loads(self(*words))

    def popen(self, *words: object) -> subprocess.Popen[bytes]:
        command = [*self._prefix, *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=self._environment)


class Rich:
    """A store with the image of ``richimage``, and what a container of it must see."""

    def __init__(self, root: Path, *, with_sparse: bool) -> None:
        self.store = Store.open(root)
        image_id = put_rich_image(self.store, "compat/rich:1", with_sparse=with_sparse)
        self.image: Image = self.store.images.get(image_id)
        self.facts: Facts = of_image(self.store, self.image.diff_ids)


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Rich:
    return Rich(tmp_path_factory.mktemp("rich") / "store", with_sparse=True)


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Rich:
    """The same without the sparse file, which docker and podman cannot write again."""
    return Rich(tmp_path_factory.mktemp("dense") / "store", with_sparse=False)


@pytest.fixture
def umoci() -> Tool:
    return Tool("umoci")


@pytest.fixture
def skopeo(tmp_path: Path) -> Tool:
    return Tool("skopeo", "--tmpdir", str(tmp_path), "--insecure-policy")


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    home = tmp_path_factory.mktemp("podman")
    tool = Tool(
        "podman", "--root", str(home / "root"), "--runroot", str(home / "run"),
        "--storage-driver", "overlay", "--tmpdir", str(home / "tmp"),
        "--cgroup-manager", "cgroupfs", "--events-backend", "none",
        TMPDIR=str(home),
    )  # fmt: skip
    yield tool
    tool("image", "unmount", "--all", "--force")
    tool("rm", "--all", "--force")
    tool("rmi", "--all", "--force")
    subprocess.run(["umount", str(home / "root" / "overlay")], capture_output=True, check=False)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """The client of a daemon that this test session starts and ends."""
    home = tmp_path_factory.mktemp("docker")
    socket = f"unix://{home}/socket"
    log = (home / "log").open("wb")
    daemon = subprocess.Popen(
        [
            "dockerd", "--data-root", str(home / "data"), "--exec-root", str(home / "exec"),
            "--host", socket, "--pidfile", str(home / "pid"), "--iptables=false",
            "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2",
        ],
        stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    tool = Tool("docker", DOCKER_HOST=socket, DOCKER_CONFIG=str(home / "config"))
    try:
        for _ in range(200):
            if daemon.poll() is not None or (home / "socket").exists():
                break
            time.sleep(0.05)
        if daemon.poll() is not None or not (home / "socket").exists():
            lines = (home / "log").read_text(errors="replace").splitlines()
            pytest.skip(f"needs a docker daemon, which does not start here: {lines[-1:]}")
        yield tool
    finally:
        if daemon.poll() is None:
            daemon.terminate()
            daemon.wait(30)
        log.close()
        shutil.rmtree(home, ignore_errors=True)
