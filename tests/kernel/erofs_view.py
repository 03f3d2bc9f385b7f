"""What the kernel shows of metadata images: a program for a mount namespace of its own.

    unshare -m --propagation private python erofs_view.py OBJECTS SCRATCH file|loop IMAGE…

One JSON document per image: {"bare": {path: facts}, "merged": {path: facts}}, bytes in hex.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys

from layerstore.kernel import mounts

WHOLE = 64 << 20
"""Of larger files only the first and the last block are read."""


def main() -> None:
    objects, scratch, how, *images = map(os.fsencode, sys.argv[1:])
    bare, merged = scratch + b"/bare", scratch + b"/merged"
    for directory in (bare, merged):
        os.makedirs(directory, exist_ok=True)
    for image in images:
        if how == b"loop":
            subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image, bare], check=True)
        else:
            mounts.mount(image, bare, b"erofs", mounts.MS_RDONLY)
        options = [("lowerdir+", bare), ("datadir+", objects)]
        switches = [("metacopy", "on"), ("redirect_dir", "on")]
        mount = mounts.new_filesystem("overlay", [*options, *switches], mounts.RDONLY)
        mounts.attach_at(mount, merged)
        os.close(mount)
        json.dump({"bare": view(bare), "merged": view(merged)}, sys.stdout)
        print(flush=True)
        mounts.umount(merged)
        mounts.umount(bare)


def view(top: bytes) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    fd = os.open(top, os.O_RDONLY)
    found[""] = facts(fd, b".")
    walk(fd, b"", found)
    os.close(fd)
    return found


def walk(fd: int, path: bytes, found: dict[str, dict[str, object]]) -> None:
    """Descriptors, not paths: these may be longer than PATH_MAX."""
    for name in sorted(map(os.fsencode, os.listdir(fd))):
        below = path + b"/" + name if path else name
        fact = found[below.hex()] = facts(fd, name)
        if stat.S_ISDIR(int(str(fact["mode"]))):
            child = os.open(name, os.O_RDONLY, dir_fd=fd)
            walk(child, below, found)
            os.close(child)
    # What readdir lists must also be found by name, and nothing else is.
    try:
        os.lstat(b"no such name", dir_fd=fd)
    except FileNotFoundError:
        pass
    else:
        raise AssertionError(f"a lookup of nothing succeeds in {path!r}")


def facts(fd: int, name: bytes) -> dict[str, object]:
    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    path = b"/proc/self/fd/%d/%b" % (fd, name)
    mode = status.st_mode
    return {
        "mode": mode,
        "owner": [status.st_uid, status.st_gid],
        "mtime_ns": status.st_mtime_ns,
        "nlink": status.st_nlink,
        "inode": status.st_ino,
        "rdev": [os.major(status.st_rdev), os.minor(status.st_rdev)],
        "size": status.st_size,
        "xattrs": {
            xattr.hex(): xattr_value(path, xattr).hex()
            for xattr in map(os.fsencode, os.listxattr(path, follow_symlinks=False))
        },
        "link": os.readlink(name, dir_fd=fd).hex() if stat.S_ISLNK(mode) else None,
        "sha256": hashed(path, status.st_size) if stat.S_ISREG(mode) else None,
    }


def xattr_value(path: bytes, name: bytes) -> bytes:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        raise AssertionError(f"the xattr {name!r} of {path!r} is listed and not there") from error


def hashed(path: bytes, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        if size > WHOLE:
            digest.update(file.read(4096))
            file.seek(size - 4096)
            digest.update(file.read(4096))
        else:
            digest.update(file.readall())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
