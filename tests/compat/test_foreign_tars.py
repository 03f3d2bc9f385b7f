"""What GNU tar and tarfile write comes back bit for bit, and as the tree that they unpack."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from abilities import needs_root, needs_tool
from facts import differences, in_whole_seconds, of_directory, of_image
from hostile import GOOD_ACL

from layerstore.names import DiffID
from layerstore.store.layers import stage_tar
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

NAME_OF_150 = "long-" * 30
CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What every format of tar can say; ``more`` adds the rest."""
    root = tmp_path / "source"
    (root / "d/sub").mkdir(parents=True)
    (root / "d/empty").touch()
    (root / "d/file").write_bytes(b"hello" * 300)
    (root / "d/sub/set").write_text("x")
    (root / "d/sub/set").chmod(0o6750)
    os.link(root / "d/file", root / "d/sub/again")
    (root / "link").symlink_to("d/file")
    (root / "dangling").symlink_to("/nowhere/at/all")
    os.chown(root / "d/file", 1000, 1001)
    with (root / "holes").open("wb") as file:
        for block in (3, 40, 41, 90, 300, 301, 555, 900, 1500, 2000, 2100):
            file.seek(block * 4096)
            file.write(b"%d" % block)
        file.truncate(16 << 20)
    (root / "hole").touch()
    os.truncate(root / "hole", 1 << 20)
    (root / "d/sub").chmod(0o1555)
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)
    return root


def more(root: Path) -> None:
    (root / "d" / NAME_OF_150).write_text("long name")
    (root / "far").symlink_to("target-" * 30)
    os.link(root / "d" / NAME_OF_150, root / ("again-" * 25))
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 1025))
    (root / os.fsdecode(b"bad\xff")).write_text("no UTF-8")
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)


def with_xattrs(root: Path) -> None:
    os.setxattr(root / "d/file", "user.binary", bytes(range(256)))
    os.setxattr(root / "d", "user.text", b"value")
    os.setxattr(root / "d/empty", "security.capability", CAPABILITY)
    os.setxattr(root / "d", "system.posix_acl_default", GOOD_ACL)
    os.setxattr(root / "d/sub/set", "system.posix_acl_access", GOOD_ACL)
    os.utime(root / "d/empty", ns=(-5 * 10**9, -5 * 10**9))
    os.utime(root / "d/file", ns=(10**18, 10**18 + 123_456_789))
    os.utime(root / "d", ns=(10**18, 10**18 + 1))


def imported(store: Store, raw: bytes) -> DiffID:
    with store.transaction() as transaction:
        stored = stage_tar(transaction, iter([raw]), where="the archive")
        transaction.publish()
        assert b"".join(store.layers.tar(stored.diff_id)) == raw
        lowers = lower_directories(store, (stored.diff_id,))
        shown = of_directory(os.fsencode(lowers[0]))
        assert differences(shown, of_image(store, [stored.diff_id])) == {}
    return stored.diff_id


FORMATS = {
    "v7": ["--format=v7"], "ustar": ["--format=ustar"], "gnu": ["--format=gnu"],
    "oldgnu": ["--format=oldgnu"], "posix": ["--format=posix"],
    "sparse gnu": ["--format=gnu", "-S"], "sparse oldgnu": ["--format=oldgnu", "-S"],
    "sparse 0.0": ["--format=posix", "-S", "--sparse-version=0.0"],
    "sparse 0.1": ["--format=posix", "-S", "--sparse-version=0.1"],
    "sparse 1.0": ["--format=posix", "-S", "--sparse-version=1.0"],
    "xattrs": ["--format=posix", "--xattrs", "--xattrs-include=*"],
    "xattrs acls sparse": ["--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "-S"],
}  # fmt: skip


@needs_root
@needs_tool("tar")
@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_what_gnu_tar_packs_comes_back_bit_for_bit_and_as_it_unpacks_it(
    options: list[str], source: Path, tmp_path: Path
) -> None:
    if options[0] not in ("--format=v7", "--format=ustar"):
        more(source)
    if "--xattrs" in options:
        with_xattrs(source)

    packed = tmp_path / "packed.tar"
    command = ["tar", "--numeric-owner", *options, "-C", str(source), "-cf", str(packed), "."]
    subprocess.run(command, check=True)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    kept = ["--xattrs", "--xattrs-include=*"] if "--xattrs" in options else []
    command = ["tar", "--numeric-owner", "-p", *kept, "-C", str(unpacked), "-xf", str(packed)]
    subprocess.run(command, check=True)
    store = Store.open(tmp_path / "store")
    diff_id = imported(store, packed.read_bytes())
    expected = of_directory(os.fsencode(unpacked))
    if options[0] != "--format=posix":
        expected = in_whole_seconds(expected)
    assert differences(expected, of_image(store, [diff_id])) == {}


@needs_root
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT],
                         ids=["ustar", "gnu", "pax"])  # fmt: skip
def test_what_tarfile_packs_comes_back_bit_for_bit_and_as_it_was(
    form: int, source: Path, tmp_path: Path
) -> None:
    if form == tarfile.GNU_FORMAT:
        more(source)  # in its PAX form tarfile loses names that are no UTF-8
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8") as archive:
        archive.add(source, ".")
    store = Store.open(tmp_path / "store")
    diff_id = imported(store, out.getvalue())
    expected = of_directory(os.fsencode(source))
    assert differences(in_whole_seconds(expected), of_image(store, [diff_id])) == {}
