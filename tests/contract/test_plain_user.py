"""Lower directories that a plain user writes: case 106 of the layers reference, without root."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from abilities import needs_root
from tarkit import Member, archive, directory

from layerstore.names import DiffID
from layerstore.store.layers import stage_tar
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

pytestmark = needs_root

_USER = 12345


def _as_plain_user(work: Callable[[], None]) -> None:
    """Runs ``work`` in a child that gives root up for good."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setgroups([])
            os.setgid(_USER)
            os.setuid(_USER)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _import(store: Store, *members: Member) -> DiffID:
    with store.transaction() as transaction:
        stored = stage_tar(transaction, [archive(members)], where="test")
        transaction.publish()
    return stored.diff_id


def test_a_file_that_nobody_may_read_leaves_its_object_readable() -> None:
    root = Path(tempfile.mkdtemp(prefix="layerstore-test-"))
    os.chown(root, _USER, _USER)

    def work() -> None:
        store = Store.open(root / "store")
        secret = Member(b"n/m/f", content=b"secret", mode=0)
        closed = _import(store, directory(b"n/", 0o555), directory(b"n/m/", 0), secret)
        lower = lower_directories(store, (closed,))[0]
        assert (lower / "n").stat().st_mode & 0o7777 == 0o555
        (lower / "n/m").chmod(0o700)
        assert (lower / "n/m/f").stat().st_mode & 0o7777 == 0
        (lower / "n/m").chmod(0)
        assert b"secret" in b"".join(store.layers.tar(closed))
        again = _import(store, Member(b"g", content=b"secret"))
        assert (lower_directories(store, (closed, again))[0] / "g").read_bytes() == b"secret"

    try:
        _as_plain_user(work)
    finally:
        shutil.rmtree(root)
