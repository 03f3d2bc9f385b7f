"""What is done in a container, and what its layer says: the catalogue of the layers reference, 8.1.

Each case runs in a real overlay over a base of its own. The layer must be exactly the expected
entries, and with the base below it must show what the container showed, in memory and mounted.
"""

# mypy: disable-error-code="func-returns-value"
from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from abilities import needs_overlay
from erofs_trees import ACL, CAPABILITY
from layer_world import (
    MADE_SINCE_NS,
    NEW,
    Container,
    View,
    World,
    captured_times,
    differences,
    in_namespace,
    view_of_mount,
    view_of_tree,
)
from tarkit import Member, directory, hardlink, symlink

from layerstore.errors import FormatError
from layerstore.formats.changes import diff
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.tree import Node, apply
from layerstore.formats.xattrs import TRUSTED_OVERLAY
from layerstore.names import Digest
from layerstore.snapshot import Times, capture

pytestmark = needs_overlay

_TIMES = Times(made_since_ns=MADE_SINCE_NS, made_at=NEW)
_NOW = NEW * 10**9
_OLD = 100 * 10**9
TIB = 1 << 40
EMPTY = hashlib.sha256(b"0:").hexdigest()


def _file(
    path: bytes, content: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0, *,
    mtime_ns: int = _NOW, xattrs: tuple[tuple[bytes, bytes], ...] = (),
) -> Entry:  # fmt: skip
    digest = Digest.of(content) if content else None
    return Entry(
        path, Kind.FILE, mode, uid, gid, mtime_ns, len(content), digest, xattrs=tuple(xattrs)
    )


def _dir(
    path: bytes, mode: int = 0o755, uid: int = 0, gid: int = 0, *,
    mtime_ns: int = _NOW, xattrs: tuple[tuple[bytes, bytes], ...] = (),
) -> Entry:  # fmt: skip
    return Entry(path, Kind.DIRECTORY, mode, uid, gid, mtime_ns, xattrs=tuple(xattrs))


def _gone(path: bytes) -> Entry:
    return Entry(path, Kind.WHITEOUT)


def _link(path: bytes, target: bytes, mode: int = 0o644, mtime_ns: int = _NOW) -> Entry:
    return Entry(path, Kind.HARDLINK, mode, mtime_ns=mtime_ns, link=target)


def _sym(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, mtime_ns=_NOW, link=target)


BASE: tuple[Member, ...] = (
    directory(b"a/"), Member(b"a/x", content=b"x"), Member(b"a/y", content=b"y"),
    directory(b"d/"), directory(b"d/b/"), directory(b"d/b/c/"), Member(b"d/b/c/f", content=b"f"),
    Member(b"d/k", content=b"k"),
    directory(b"dir1/"), Member(b"dir1/f", content=b"1"), Member(b"dir1-before", content=b"-"),
    directory(b"e/"),
    directory(b"l/"), Member(b"l/g", content=b"lower g"), hardlink(b"l/h", b"l/g"),
    symlink(b"l/s", b"g"),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    do: Callable[[Path], object]
    says: Sequence[Entry]
    base: tuple[Member, ...] = BASE
    options: dict[str, bool] = field(default_factory=dict)
    afterwards: Callable[[Path], object] = lambda upper: None
    """What is done to the upper directory itself; the container never shows it."""
    stubs: tuple[bytes, ...] = ()
    warnings: int = 0
    shows: Callable[[View], View] = lambda view: view
    """How ``afterwards`` changes what is shown."""
    unsaid: tuple[bytes, ...] = ()
    """Paths that the container shows and no layer can say."""


ROOT = _dir(b"")


def _write(path: Path | bytes, content: bytes = b"new") -> None:
    with open(path, "wb") as file:
        file.write(content)


def _rm(path: Path) -> None:
    shutil.rmtree(path)


def _make_again(path: Path) -> None:
    _rm(path)
    path.mkdir()


def _touch(path: Path, seconds: int = 100) -> None:
    os.utime(path, ns=(seconds * 10**9,) * 2, follow_symlinks=False)


def _all(*steps: object) -> None:
    """Runs nothing: its arguments have been run, in order."""


def _mv_by_copy(source: Path, target: Path) -> None:
    """As mv(1) does where rename gives EXDEV, as the stacked driver does."""
    shutil.copytree(source, target, symlinks=True)
    _rm(source)


def _overlay_xattr(name: bytes, value: bytes) -> Callable[[Path], None]:
    """On a directory and a file of the upper directory, in its own namespace."""

    def set_them(upper: Path) -> None:
        for path in (upper / "a", upper / "a/new"):
            os.setxattr(path, TRUSTED_OVERLAY + name, value)

    return set_them


def _whiteout_by_xattr(upper: Path) -> None:
    os.setxattr(upper / "a", "trusted.overlay.opaque", b"x")
    _write(upper / "a/x", b"")
    os.setxattr(upper / "a/x", "trusted.overlay.whiteout", b"")
    _touch(upper / "a")


def _socket(path: Path) -> None:
    where = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
    os.chdir(where)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(TIB)
        os.pwrite(file.fileno(), b"data", 1 << 39)


def _chmod_back(path: Path) -> None:
    path.chmod(0o600)
    path.chmod(0o644)


def _rename_back(path: Path) -> None:
    path.rename(path.with_name("tmp"))
    path.with_name("tmp").rename(path)
    _touch(path.parent)


def _change_root(root: Path) -> None:
    root.chmod(0o1711)
    os.chown(root, 7, 8)
    os.setxattr(root, "user.root", b"r")


def _append_nothing(path: Path) -> None:
    with path.open("ab"):
        pass


_STUBS = (b"a/dev", b"a/dev/null", b"a/resolv.conf")
_D_AGAIN = [_dir(b"d"), _gone(b"d/b"), _gone(b"d/k")]
_A = _dir(b"a")
_REDIRECT = {"redirect": True, "metacopy": True}
_SPARSE_PAYLOAD = b"2\n549755813888\n4096\n1099511627776\n0\n".ljust(512, b"\0") + b"data".ljust(
    4096, b"\0"
)


CASES: dict[str, Case] = {
    "d01-removed-file": Case(lambda m: (m / "a/x").unlink(), [_A, _gone(b"a/x")]),
    "d02-removed-tree": Case(lambda m: _rm(m / "a"), [ROOT, _gone(b"a")]),
    "d03-removed-tree-with-a-sibling-of-the-same-prefix": Case(
        lambda m: _rm(m / "dir1"), [ROOT, _gone(b"dir1")]
    ),
    "d04-replaced-directory": Case(lambda m: _make_again(m / "d"), [ROOT, *_D_AGAIN]),
    "d05-replaced-empty-directory": Case(lambda m: _make_again(m / "e"), [ROOT, _dir(b"e")]),
    "d06-replaced-directory-and-some-below": Case(
        lambda m: _all(
            _make_again(m / "d"), (m / "d/b").mkdir(), _write(m / "d/b/new"),
        ),
        [ROOT, _dir(b"d"), _gone(b"d/k"), _dir(b"d/b"), _gone(b"d/b/c"), _file(b"d/b/new", b"new")],
    ),
    "d06-replaced-directory-with-the-same-children": Case(
        lambda m: _all(
            _make_again(m / "a"), _write(m / "a/x", b"x"), _touch(m / "a/x"), _touch(m / "a"),
            _touch(m, 0),
        ),
        [_dir(b"a", mtime_ns=_OLD), _gone(b"a/y")],
    ),
    "d08-file-to-directory": Case(
        lambda m: _all((m / "a/x").unlink(), (m / "a/x").mkdir(), _write(m / "a/x/c")),
        [_A, _dir(b"a/x"), _file(b"a/x/c", b"new")],
    ),
    "d09-directory-to-file": Case(
        lambda m: _all(_rm(m / "d/b"), _write(m / "d/b")), [_dir(b"d"), _file(b"d/b", b"new")]
    ),
    "d10-directory-to-symlink": Case(
        lambda m: _all(_rm(m / "d/b"), (m / "d/b").symlink_to("k")),
        [_dir(b"d"), _sym(b"d/b", b"k")],
    ),
    "d10-symlink-to-directory": Case(
        lambda m: _all((m / "l/s").unlink(), (m / "l/s").mkdir()),
        [_dir(b"l"), _dir(b"l/s")],
    ),
    "d12-chmod-of-a-directory": Case(
        lambda m: (m / "d/b").chmod(0o700),
        [_dir(b"d", mtime_ns=_OLD), _dir(b"d/b", 0o700, mtime_ns=_OLD)],
    ),
    "d12-chown-of-a-directory": Case(
        lambda m: os.chown(m / "e", 1000, 1001), [_dir(b"e", uid=1000, gid=1001, mtime_ns=_OLD)]
    ),
    "d12-touch-of-a-directory": Case(
        lambda m: _touch(m / "e", 200), [_dir(b"e", mtime_ns=2 * _OLD)]
    ),
    "d13-chmod-of-a-file": Case(
        lambda m: (m / "a/x").chmod(0o4755),
        [_dir(b"a", mtime_ns=_OLD), _file(b"a/x", b"x", 0o4755, mtime_ns=_OLD)],
    ),
    "d14-chmod-of-a-file-by-metacopy": Case(
        lambda m: (m / "a/x").chmod(0o4755),
        [_dir(b"a", mtime_ns=_OLD), _file(b"a/x", b"x", 0o4755, mtime_ns=_OLD)],
        options={"metacopy": True},
    ),
    "d15-metacopy-then-rename": Case(
        lambda m: _all((m / "a/x").chmod(0o600), (m / "a/x").rename(m / "a/z")),
        [_A, _gone(b"a/x"), _file(b"a/z", b"x", 0o600, mtime_ns=_OLD)],
        options=_REDIRECT,
    ),
    "d15-metacopy-then-rename-to-another-directory": Case(
        lambda m: _all((m / "d/b/c/f").chmod(0o600), (m / "d/b/c/f").rename(m / "e/f")),
        [
            _dir(b"d", mtime_ns=_OLD), _dir(b"d/b", mtime_ns=_OLD), _dir(b"d/b/c"),
            _gone(b"d/b/c/f"), _dir(b"e"), _file(b"e/f", b"f", 0o600, mtime_ns=_OLD),
        ],
        options=_REDIRECT,
    ),
    "d16-moved-directory-without-redirect": Case(
        lambda m: _all(_mv_by_copy(m / "d/b", m / "d/z")),
        [
            _dir(b"d"), _gone(b"d/b"), _dir(b"d/z", mtime_ns=_OLD), _dir(b"d/z/c", mtime_ns=_OLD),
            _file(b"d/z/c/f", b"f", mtime_ns=_OLD),
        ],
    ),
    "d17-moved-directory": Case(
        lambda m: (m / "d/b").rename(m / "d/z"),
        [
            _dir(b"d"), _gone(b"d/b"), _dir(b"d/z", mtime_ns=_OLD), _dir(b"d/z/c", mtime_ns=_OLD),
            _file(b"d/z/c/f", b"f", mtime_ns=_OLD),
        ],
        options=_REDIRECT,
    ),
    "d17-moved-directory-changed-inside": Case(
        lambda m: _all(
            (m / "d/b").rename(m / "e/z"), (m / "e/z/c/f").unlink(), _write(m / "e/z/c/n"),
        ),
        [
            _dir(b"d"), _gone(b"d/b"), _dir(b"e"), _dir(b"e/z", mtime_ns=_OLD), _dir(b"e/z/c"),
            _file(b"e/z/c/n", b"new"),
        ],
        options=_REDIRECT,
    ),
    "d17-moved-directory-out-of-a-moved-directory": Case(
        lambda m: _all((m / "d/b").rename(m / "e/z"), (m / "e/z/c").rename(m / "a/c")),
        [
            _A, _dir(b"a/c", mtime_ns=_OLD), _file(b"a/c/f", b"f", mtime_ns=_OLD), _dir(b"d"),
            _gone(b"d/b"), _dir(b"e"), _dir(b"e/z"),
        ],
        options=_REDIRECT,
    ),
    "d17-moved-directory-and-a-new-one-in-its-place": Case(
        lambda m: _all((m / "d/b").rename(m / "e/z"), (m / "d/b").mkdir()),
        [
            _dir(b"d"), _dir(b"d/b"), _gone(b"d/b/c"), _dir(b"e"), _dir(b"e/z", mtime_ns=_OLD),
            _dir(b"e/z/c", mtime_ns=_OLD), _file(b"e/z/c/f", b"f", mtime_ns=_OLD),
        ],
        options=_REDIRECT,
    ),
    "d17-moved-directory-and-back": Case(
        lambda m: _all(
            (m / "d/b").rename(m / "d/z"), (m / "d/z").rename(m / "d/b"), _touch(m / "d"),
        ),
        [],
        options=_REDIRECT,
    ),
    "d17-two-directories-swapped": Case(
        lambda m: _all(
            (m / "d/b").rename(m / "d/t"), (m / "d/t").rename(m / "e/b"),
            (m / "a").rename(m / "d/b"), _touch(m, 0),
        ),
        [
            _gone(b"a"), _dir(b"d"), _dir(b"d/b", mtime_ns=_OLD), _gone(b"d/b/c"),
            _file(b"d/b/x", b"x", mtime_ns=_OLD), _file(b"d/b/y", b"y", mtime_ns=_OLD),
            _dir(b"e"), _dir(b"e/b", mtime_ns=_OLD), _dir(b"e/b/c", mtime_ns=_OLD),
            _file(b"e/b/c/f", b"f", mtime_ns=_OLD),
        ],
        options=_REDIRECT,
    ),
    "d17-moved-directory-holds-one-of-two-links": Case(
        lambda m: _all((m / "two/one").rename(m / "two/moved")),
        [
            _dir(b"two"), _gone(b"two/one"), _file(b"two/f", b"2", mtime_ns=_OLD),
            _dir(b"two/moved", mtime_ns=_OLD), _link(b"two/moved/f", b"two/f", mtime_ns=_OLD),
        ],
        base=(
            directory(b"two/"), directory(b"two/one/"), Member(b"two/one/f", content=b"2"),
            hardlink(b"two/f", b"two/one/f"),
        ),
        options=_REDIRECT,
    ),
    "d19-created-and-deleted": Case(
        lambda m: _all(_write(m / "a/n"), (m / "a/n").unlink()), [_A]
    ),
    "d19-created-and-deleted-and-the-time-restored": Case(
        lambda m: _all(_write(m / "a/n"), (m / "a/n").unlink(), _touch(m / "a")), []
    ),
    "d21-moved-and-back": Case(lambda m: _rename_back(m / "a/x"), []),
    "d21-chmod-and-back": Case(lambda m: _chmod_back(m / "a/x"), []),
    "d21-opened-for-writing": Case(lambda m: _append_nothing(m / "a/x"), []),
    "d21-written-with-the-same-content": Case(
        lambda m: _all(_write(m / "a/x", b"x"), _touch(m / "a/x")), []
    ),
    "d22-new-link-to-a-lower-file-with-two-names": Case(
        lambda m: os.link(m / "l/g", m / "l/new"),
        [
            _dir(b"l"), _file(b"l/g", b"lower g", mtime_ns=_OLD),
            _link(b"l/new", b"l/g", mtime_ns=_OLD),
        ],
    ),
    "d23-new-link-with-an-index": Case(
        lambda m: os.link(m / "a/x", m / "a/new"),
        [_A, _file(b"a/new", b"x", mtime_ns=_OLD), _link(b"a/x", b"a/new", mtime_ns=_OLD)],
        options={"index": True},
    ),
    "d26-whiteout-of-nothing": Case(
        lambda m: _all(_append_nothing(m / "a/x")), [],
        afterwards=lambda u: _all(
            os.mknod(u / "a/nothing", stat.S_IFCHR, 0), os.mknod(u / "nor-this", stat.S_IFCHR, 0),
            _touch(u / "a"), _touch(u, 0),
        ),
    ),
    "d27-whiteout-by-xattr": Case(
        lambda m: _all(_chmod_back(m / "a/y")), [_dir(b"a", mtime_ns=_OLD), _gone(b"a/x")],
        afterwards=_whiteout_by_xattr, unsaid=(b"a/x",),
    ),
    "d27-marked-file-where-nothing-says-that-marks-count": Case(
        lambda m: _append_nothing(m / "a/x"),
        [_dir(b"a", mtime_ns=_OLD), _file(b"a/x", b"", mtime_ns=_OLD)],
        afterwards=lambda u: _all(
            (u / "a/x").write_bytes(b""), _touch(u / "a/x"),
            os.setxattr(u / "a/x", "trusted.overlay.whiteout", b"y"),
        ),
        shows=lambda view: view | {b"a/x": view[b"a/x"]._replace(size=0, content=EMPTY)},
    ),
    "d29-own-overlay-xattr": Case(
        lambda m: _all(
            os.setxattr(m / "a/x", "trusted.overlay.opaque", b"y"),
            os.setxattr(m / "a", "trusted.overlay.X", b"1"),
        ),
        [
            _dir(b"a", mtime_ns=_OLD, xattrs=((b"trusted.overlay.X", b"1"),)),
            _file(b"a/x", b"x", mtime_ns=_OLD, xattrs=((b"trusted.overlay.opaque", b"y"),)),
        ],
    ),
    **{
        f"d30-the-mark-{name.decode()}": Case(
            lambda m: _write(m / "a/new"), [_A, _file(b"a/new", b"new")],
            afterwards=_overlay_xattr(name, b"y"),
        )
        for name in (b"origin", b"impure", b"uuid", b"protattr", b"nlink", b"upper")
    },
    "d31-user-xattr": Case(
        lambda m: _all(
            os.setxattr(m / "a", "user.foo", b"1"), os.setxattr(m / "a/x", "user.foo", b"\xff\0\n"),
        ),
        [
            _dir(b"a", mtime_ns=_OLD, xattrs=((b"user.foo", b"1"),)),
            _file(b"a/x", b"x", mtime_ns=_OLD, xattrs=((b"user.foo", b"\xff\0\n"),)),
        ],
    ),
    "d32-only-an-xattr-changes": Case(
        lambda m: os.setxattr(m / "v/f", "user.v", b"2"),
        [
            _dir(b"v", mtime_ns=_OLD),
            _file(b"v/f", b"f", mtime_ns=_OLD, xattrs=((b"user.v", b"2"),)),
        ],
        base=(directory(b"v/"), Member(b"v/f", content=b"f", xattrs={b"user.v": b"1"})),
    ),
    "d32-an-xattr-is-removed": Case(
        lambda m: os.removexattr(m / "v/f", "user.v"),
        [_dir(b"v", mtime_ns=_OLD), _file(b"v/f", b"f", mtime_ns=_OLD)],
        base=(directory(b"v/"), Member(b"v/f", content=b"f", xattrs={b"user.v": b"1"})),
    ),
    "d32-a-capability": Case(
        lambda m: os.setxattr(m / "a/x", "security.capability", CAPABILITY),
        [
            _dir(b"a", mtime_ns=_OLD),
            _file(b"a/x", b"x", mtime_ns=_OLD, xattrs=((b"security.capability", CAPABILITY),)),
        ],
    ),
    "d33-empty-xattr-value": Case(
        lambda m: os.setxattr(m / "e", "user.empty", b""), [], warnings=1
    ),
    "d35-selinux-label": Case(
        lambda m: _append_nothing(m / "a/x"), [],
        afterwards=lambda u: os.setxattr(u / "a/x", "security.selinux", b"label\0"),
    ),
    "d36-acl": Case(
        lambda m: _all(
            _append_nothing(m / "a/x"),
            os.setxattr(m / "a/x", "system.posix_acl_access", ACL),
            os.setxattr(m / "a", "system.posix_acl_default", ACL),
        ),
        [
            _dir(b"a", mtime_ns=_OLD, xattrs=((b"system.posix_acl_default", ACL),)),
            _file(b"a/x", b"x", 0o674, mtime_ns=_OLD, xattrs=((b"system.posix_acl_access", ACL),)),
        ],
    ),
    "d37-attributes-of-the-root": Case(
        _change_root, [_dir(b"", 0o1711, 7, 8, mtime_ns=0, xattrs=((b"user.root", b"r"),))]
    ),
    "d37-root-of-an-image-that-says-one": Case(
        lambda m: _append_nothing(m / "f"), [],
        base=(
            directory(b"./", 0o1711, 7, 8, xattrs={b"user.root": b"r"}), Member(b"f", content=b"f"),
        ),
    ),
    "d39-socket": Case(lambda m: _socket(m / "a/s"), [_A], unsaid=(b"a/s",)),
    "d39-socket-over-a-lower-file": Case(
        lambda m: _all((m / "a/x").unlink(), _socket(m / "a/x")), [_A, _gone(b"a/x")],
        unsaid=(b"a/x",),
    ),
    "d40-fifo-and-devices": Case(
        lambda m: _all(
            os.mkfifo(m / "e/p", 0o600),
            os.mknod(m / "e/c", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
            os.mknod(m / "e/b", stat.S_IFBLK | 0o600, os.makedev(4095, 1048575)),
            os.chmod(m / "e/p", 0o6622),
        ),
        [
            _dir(b"e"), Entry(b"e/b", Kind.BLOCK, 0o600, mtime_ns=_NOW, rdev=(4095, 1048575)),
            Entry(b"e/c", Kind.CHAR, 0o600, mtime_ns=_NOW, rdev=(1, 3)),
            Entry(b"e/p", Kind.FIFO, 0o6622, mtime_ns=_NOW),
        ],
    ),
    "d42-sparse-terabyte": Case(
        lambda m: _sparse(m / "e/big"),
        [
            _dir(b"e"),
            Entry(
                b"e/big", Kind.FILE, 0o644, mtime_ns=_NOW, size=TIB,
                digest=Digest.of(_SPARSE_PAYLOAD), extents=((1 << 39, 4096),),
            ),
        ],
        warnings=1,
    ),
    "d44-stubs": Case(
        lambda m: _all(
            (m / "a/dev").mkdir(), _write(m / "a/dev/null", b""), _write(m / "a/resolv.conf", b""),
            _touch(m / "a"),
        ),
        [], stubs=_STUBS, unsaid=_STUBS,
    ),
    "d44-stubs-that-were-used": Case(
        lambda m: _all(
            (m / "a/dev").mkdir(), _write(m / "a/dev/real", b"1"),
            _write(m / "a/resolv.conf", b"x"),
        ),
        [_A, _dir(b"a/dev"), _file(b"a/dev/real", b"1"), _file(b"a/resolv.conf", b"x")],
        stubs=(b"a/dev", b"a/resolv.conf"),
    ),
    "d45-new-links": Case(
        lambda m: _all(
            _write(m / "e/b"), os.link(m / "e/b", m / "e/c"), os.link(m / "e/b", m / "e/a"),
        ),
        [_dir(b"e"), _file(b"e/a", b"new"), _link(b"e/b", b"e/a"), _link(b"e/c", b"e/a")],
    ),
    "d46-link-that-sorts-before-its-lower-name": Case(
        lambda m: os.link(m / "a/y", m / "a/aa"),
        [_A, _file(b"a/aa", b"y", mtime_ns=_OLD), _link(b"a/y", b"a/aa", mtime_ns=_OLD)],
    ),
    "d46-one-of-two-lower-links-is-written": Case(
        lambda m: _write(m / "l/g"), [_dir(b"l", mtime_ns=_OLD), _file(b"l/g", b"new")]
    ),
    "d46-one-of-two-lower-links-is-removed": Case(
        lambda m: (m / "l/g").unlink(), [_dir(b"l"), _gone(b"l/g")]
    ),
    "d46-two-lower-links-become-one-again": Case(
        lambda m: _all(
            _append_nothing(m / "l/g"), (m / "l/h").unlink(), os.link(m / "l/g", m / "l/h")
        ),
        [_dir(b"l")],
    ),
    "d46-equal-files-become-links": Case(
        lambda m: _all(
            (m / "same/b").unlink(), os.link(m / "same/a", m / "same/b"), _touch(m / "same")
        ),
        [
            _dir(b"same", mtime_ns=_OLD), _file(b"same/a", b"s", mtime_ns=_OLD),
            _link(b"same/b", b"same/a", mtime_ns=_OLD),
        ],
        base=(
            directory(b"same/"), Member(b"same/a", content=b"s"), Member(b"same/b", content=b"s"),
        ),
    ),
    "d48-hard-linked-symlink": Case(
        lambda m: _all(
            (m / "e/s").symlink_to("t"), os.link(m / "e/s", m / "e/s2", follow_symlinks=False)
        ),
        [_dir(b"e"), _sym(b"e/s", b"t"), _link(b"e/s2", b"e/s", 0o777)],
    ),
    "d49-lower-has-seconds-upper-nanoseconds": Case(
        lambda m: os.utime(m / "a/x", ns=(5, _OLD + 5)), []
    ),
    "d49-same-second-and-size-other-content": Case(
        lambda m: _all(_write(m / "a/x", b"z"), os.utime(m / "a/x", ns=(5, _OLD + 5))),
        [_dir(b"a", mtime_ns=_OLD), _file(b"a/x", b"z", mtime_ns=_OLD)],
    ),
    "d49-same-nanosecond-and-size": Case(
        lambda m: _append_nothing(m / "ns"), [],
        base=(Member(b"ns", content=b"n", pax={b"mtime": b"5.000000001"}),),
    ),
    "d50-time-before-the-epoch": Case(
        lambda m: os.utime(m / "e", ns=(0, -86400 * 10**9)), [_dir(b"e", mtime_ns=-86400 * 10**9)]
    ),
    "d51-name-that-is-no-text": Case(
        lambda m: _write(bytes(m) + b"/e/bad\xff\n"), [_dir(b"e"), _file(b"e/bad\xff\n", b"new")]
    ),
    "d52-large-ids": Case(
        lambda m: _all(os.chown(m / "e", 3000000, 2**32 - 2)),
        [_dir(b"e", uid=3000000, gid=2**32 - 2, mtime_ns=_OLD)],
    ),
    "d54-no-change": Case(lambda m: os.listdir(m / "a"), []),
    "d55-opaque-upper-root": Case(
        lambda m: None, [], afterwards=lambda u: os.setxattr(u, "trusted.overlay.opaque", b"y")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_layer_says_what_was_done(world: World, case: Case) -> None:
    base = world.import_tar(case.base)
    parent = world.store.layers.tree((base,))
    warnings: list[str] = []

    def run(container: Container) -> View:
        before = os.umask(0o022)
        try:
            with container.mounted((base,), **case.options) as merged:
                case.do(merged)
                return view_of_mount(merged)
        finally:
            os.umask(before)

    with world.container() as container:
        shown = in_namespace(lambda: run(container))
        case.afterwards(container.upper)
        with world.store.transaction() as transaction:
            tree = capture(
                container.upper, parent, transaction,
                xattr_prefix=world.driver.xattr_prefix, stubs=case.stubs, times=_TIMES,
                warn=warnings.append,
            )  # fmt: skip
            transaction.publish()
    said = diff(parent, tree)
    assert said == list(case.says)
    assert len(warnings) == case.warnings, warnings
    expected = captured_times(
        {path: fact for path, fact in case.shows(shown).items() if path not in case.unsaid},
        view_of_tree(parent, world.store),
    )
    applied = apply(parent, said)
    assert differences(expected, view_of_tree(applied, world.store)) == []
    if said:
        layer = world.import_entries(said)

        def look() -> View:
            with world.mounted((base, layer)) as merged:
                return view_of_mount(merged)

        assert differences(expected, in_namespace(look)) == []


def test_an_acl_may_be_set_on_a_file_of_the_image(
    world: World, request: pytest.FixtureRequest
) -> None:
    if world.driver.name == "composed":
        reason = "Linux refuses ACLs on EROFS files that are not copied up: ovl_set_acl"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True, raises=OSError))
    base = world.import_tar(BASE)
    with world.container() as container:

        def run() -> bytes:
            with container.mounted((base,)) as merged:
                os.setxattr(merged / "a/x", "system.posix_acl_access", ACL)
                return os.getxattr(merged / "a/x", "system.posix_acl_access")

        assert in_namespace(run) == ACL


def test_a_file_of_nine_gibibytes_keeps_its_size(world: World) -> None:
    base = world.import_tar(BASE)
    parent = world.store.layers.tree((base,))
    with world.container() as container:

        def run() -> None:
            with container.mounted((base,)) as merged, (merged / "e/f").open("wb") as file:
                file.truncate(9 << 30)

        in_namespace(run)
        with world.store.transaction() as transaction:
            tree = capture(
                container.upper, parent, transaction, xattr_prefix=world.driver.xattr_prefix
            )
            transaction.publish()
    node = tree.lookup(b"e/f")
    assert node is not None
    assert (node.size, node.extents) == (9 << 30, ())


@pytest.mark.parametrize(
    ("name", "where"),
    [(".wh.x", "/a/.wh.x"), (".wh.", "/a/.wh."), (".wh..wh..opq", "/a/.wh..wh..opq")],
)
def test_a_name_that_means_a_whiteout_is_refused(world: World, name: str, where: str) -> None:
    base = world.import_tar(BASE)
    with world.container() as container:
        (container.upper / "a").mkdir()
        (container.upper / "a" / name).touch()
        with world.store.transaction() as transaction, pytest.raises(FormatError, match=where):
            capture(
                container.upper, world.store.layers.tree((base,)), transaction,
                xattr_prefix=world.driver.xattr_prefix,
            )  # fmt: skip


class _MappedIds:
    """The host's user 1000 is the container's root."""

    def owner(self, uid: int, gid: int, parent: Node | None) -> tuple[int, int]:
        return uid + 5, gid

    def uid(self, uid: int) -> int:
        return uid - 1000


def test_a_namespaced_capability_becomes_a_plain_one(world: World) -> None:
    """Version 3 names the user namespace's root, which means nothing elsewhere (rule 3.12)."""
    base = world.import_tar(BASE)
    version_3 = struct.pack("<6I", 0x03000001, 1 << 10, 0, 0, 0, 1000)
    with world.container() as container:
        (container.upper / "f").touch()
        os.setxattr(container.upper / "f", "security.capability", version_3)
        with world.store.transaction() as transaction:
            tree = capture(
                container.upper, world.store.layers.tree((base,)), transaction,
                xattr_prefix=world.driver.xattr_prefix,
                ids=_MappedIds(),
            )  # fmt: skip
    node = tree.lookup(b"f")
    assert node is not None
    assert node.xattrs == ((b"security.capability", CAPABILITY),)
