"""``from: {host: [...]}``: a small root filesystem made of this host's own programs.

A base is what its pieces need and nothing else: each program with the libraries its loader will
ask for, every symlink on the way, and a skeleton that is the same everywhere. Files keep the
host's paths, so that RUNPATHs, prefixes and merged /usr stay right. Nothing is executed, nothing
is written, and the host's own users, hosts and name service configuration stay outside.

Left out on purpose: PAM, and gconv (a base that needs iconv names the directory).
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from layerstore.errors import HostError, UsageError
from layerstore.host.closure import HostTree
from layerstore.host.gather import PATH, Gatherer, HostFile


@dataclass(frozen=True, slots=True)
class HostBase:
    """What ``collect`` found."""

    files: tuple[HostFile, ...]
    """Sorted by path, bytewise: a directory comes before what it holds."""
    env: dict[str, str]
    """PATH, and LANG where the locale is there."""
    warnings: tuple[str, ...]


def collect(pieces: Sequence[str], *, host_root: Path = Path("/")) -> HostBase:
    """The base of these pieces: names of ``PIECES``, or absolute paths of files and directories.

    Raises UsageError for an unknown piece, and HostError for a piece that this host lacks or a
    library that nobody provides.
    """
    if not pieces:
        raise UsageError("a host base of no pieces", hint=f"name some of: {', '.join(PIECES)}")
    gatherer = Gatherer(HostTree(host_root))
    for piece in dict.fromkeys(pieces):
        if piece.startswith("/"):
            _add_path(gatherer, os.fsencode(piece))
        elif piece in PIECES:
            PIECES[piece](gatherer)
        else:
            raise _unknown(piece, gatherer)
    files = gatherer.finish()
    env = {"PATH": PATH} | ({"LANG": "C.UTF-8"} if gatherer.has_locale else {})
    return HostBase(files, env, tuple(dict.fromkeys(gatherer.warnings)))


def _unknown(piece: str, gatherer: Gatherer) -> UsageError:
    hint = f"known pieces: {', '.join(PIECES)}, or any absolute path"
    close = get_close_matches(piece, PIECES, n=1)
    program = gatherer.which(os.fsencode(piece)) if "/" not in piece else None
    if close:
        hint = f"did you mean {close[0]!r}? {hint}"
    elif program is not None:
        hint = f"write the program's path: {os.fsdecode(program)}; {hint}"
    return UsageError(f"{piece!r} is not a piece of a host base", hint=hint)


# The pieces.


def _add_path(gatherer: Gatherer, name: bytes) -> None:
    name = b"/" + name.strip(b"/")
    shown = os.fsdecode(name)
    found = gatherer.host.find(name)
    if found is None:
        raise HostError(f"there is no {shown} on this host", hint="correct the path or install it")
    if found.real == b"/" or found.real.split(b"/")[1] in (b"proc", b"sys", b"dev"):
        raise UsageError(
            f"{shown} is no piece of a host base", hint="name programs or a directory of files"
        )
    _refuse_shim(gatherer, name)
    if stat.S_ISDIR(found.mode):
        gatherer.tree(name, wanted_by="the base")
    else:
        gatherer.program(name, wanted_by="the base")


def _refuse_shim(gatherer: Gatherer, name: bytes) -> None:
    """A pyenv shim asks pyenv which interpreter it is: it means nothing inside an image."""
    versions = os.path.dirname(os.path.dirname(name)) + b"/versions"
    found = gatherer.host.find(versions)
    if os.path.basename(os.path.dirname(name)) != b"shims" or found is None:
        return
    program = os.path.basename(name)
    choices = [
        versions + b"/" + version + b"/bin/" + program for version in gatherer.host.list(found.real)
    ]
    present = [os.fsdecode(choice) for choice in choices if gatherer.host.is_file(choice)]
    raise UsageError(
        f"{os.fsdecode(name)} is a pyenv shim, not a program",
        hint=f"name the program itself: {' or '.join(present) or 'pyenv which knows its path'}",
    )


def _busybox(gatherer: Gatherer) -> None:
    places = [
        directory + b"/" + name
        for name in (b"busybox.static", b"busybox-static", b"busybox")
        for directory in (b"/bin", b"/usr/bin", b"/sbin", b"/usr/sbin", b"/usr/local/bin")
        if gatherer.host.is_file(directory + b"/" + name)
    ]
    if not places:
        raise HostError(
            "there is no busybox on this host",
            hint="apt-get install busybox-static, or apk add busybox-static",
        )

    def is_dynamic(place: bytes) -> bool:
        image = gatherer.host.elf(place)
        return image is None or not image.is_static

    chosen = min(places, key=is_dynamic)
    gatherer.program(chosen, wanted_by="busybox")
    real, bin_ = gatherer.place(chosen, wanted_by="busybox"), gatherer.host.find(b"/bin")
    directory = bin_.real if bin_ else b"/bin"
    target = os.path.basename(real) if os.path.dirname(real) == directory else real
    applets = _applets(gatherer.host.text(chosen) or b"")
    if not applets:
        gatherer.warnings.append(
            f"{os.fsdecode(chosen)} does not show its applets: only sh is linked to it"
        )
    for applet in applets or (b"sh",):
        gatherer.fills[directory + b"/" + applet] = target


def _applets(busybox: bytes) -> tuple[bytes, ...]:
    """The applets' names, from the sorted table that begins with ``[``, or else ``acpid``.

    Nothing is executed: the table is ``applet_names`` of busybox's include/applet_tables.h, a run
    of NUL-terminated strings that an empty one ends.
    """
    for first in (rb"\[\0\[\[", rb"acpid", rb"addgroup", rb"adduser", rb"ar", rb"arch"):
        for match in re.finditer(rb"\0" + first + rb"\0(?:[\w.\[-]{1,30}\0)+(?=\0)", busybox):
            names = match[0].strip(b"\0").split(b"\0")
            if names == sorted(names) and {b"cat", b"ls", b"sh"} <= set(names):
                return tuple(names)
    return ()


def _program_piece(*places: bytes, package: str) -> Callable[[Gatherer], None]:
    def add(gatherer: Gatherer) -> None:
        for place in places:
            if gatherer.host.is_file(place):
                gatherer.program(place, wanted_by="the base")
                return
        raise HostError(
            f"there is no {os.fsdecode(places[0])} on this host", hint=f"install {package}"
        )

    return add


# GNU coreutils 9.1, for hosts whose package database is not dpkg's.
_COREUTILS = b"""[ arch b2sum base32 base64 basename basenc cat chcon chgrp chmod chown chroot cksum
comm cp csplit cut date dd df dir dircolors dirname du echo env expand expr factor false fmt fold
groups head hostid id install join link ln logname ls md5sum mkdir mkfifo mknod mktemp mv nice nl
nohup nproc numfmt od paste pathchk pinky pr printenv printf ptx pwd readlink realpath rm rmdir
runcon sha1sum sha224sum sha256sum sha384sum sha512sum shred shuf sleep sort split stat stdbuf stty
sum sync tac tail tee test timeout touch tr true truncate tsort tty uname unexpand uniq unlink users
vdir wc who whoami yes""".split()
_LIBSTDBUF = (b"/usr/libexec/coreutils/libstdbuf.so", b"/usr/lib/coreutils/libstdbuf.so")


def _coreutils(gatherer: Gatherer) -> None:
    listed = gatherer.host.text(b"/var/lib/dpkg/info/coreutils.list") or b""
    names = re.findall(rb"^(/(?:usr/)?s?bin/.+|.*/libstdbuf\.so)$", listed, re.MULTILINE)
    if not {b"/bin/ls", b"/usr/bin/ls"} & set(names):
        found = [gatherer.which(program) for program in _COREUTILS]
        names = [name for name in (*found, *_LIBSTDBUF) if name and gatherer.host.is_file(name)]
    if not names:
        raise HostError("there are no coreutils on this host", hint="install coreutils")
    for name in names:
        if gatherer.host.is_file(name):
            gatherer.program(name, wanted_by="coreutils")


def _python3(gatherer: Gatherer) -> None:
    """The distribution's; else the one that runs this, linked as /usr/local/bin/python3."""
    for place in (b"/usr/bin/python3", b"/usr/local/bin/python3"):
        if gatherer.host.is_file(place):
            gatherer.program(place, wanted_by="python3")
            return
    running = gatherer.host.find(os.fsencode(sys.executable or "/"))
    if running is None or not stat.S_ISREG(running.mode):
        raise HostError("there is no python3 on this host", hint="apt-get install python3")
    gatherer.program(running.real, wanted_by="python3")
    gatherer.fills[b"/usr/local/bin/python3"] = running.real


_CERTIFICATES = (b"/etc/ssl/certs", b"/etc/ssl/cert.pem", b"/usr/lib/ssl/certs",
                 b"/usr/lib/ssl/cert.pem", b"/etc/pki/tls/certs", b"/etc/pki/tls/cert.pem",
                 b"/etc/pki/ca-trust/extracted/pem")  # fmt: skip
_ZONEINFO = b"/usr/share/zoneinfo"


def _ca_certificates(gatherer: Gatherer) -> None:
    present = [name for name in _CERTIFICATES if gatherer.host.find(name) is not None]
    if not present:
        raise HostError("no CA certificates on this host", hint="install ca-certificates")
    for name in present:
        if gatherer.host.is_file(name):
            gatherer.place(name, wanted_by="ca-certificates")
        else:
            gatherer.tree(name, wanted_by="ca-certificates", scripts=False)


def _tzdata(gatherer: Gatherer) -> None:
    """Without ``posix`` (the same again) and ``right`` (leap seconds, which nobody asks for)."""
    if not gatherer.host.is_file(_ZONEINFO + b"/Etc/UTC"):
        raise HostError("there is no time zone database on this host", hint="install tzdata")
    gatherer.tree(
        _ZONEINFO,
        wanted_by="tzdata",
        leave_out=lambda name: name in (b"posix", b"right"),
        scripts=False,
    )


PIECES: dict[str, Callable[[Gatherer], None]] = {
    "busybox": _busybox,
    "sh": _program_piece(b"/bin/sh", package="a shell"),
    "bash": _program_piece(b"/bin/bash", b"/usr/bin/bash", package="bash"),
    "coreutils": _coreutils,
    "python3": _python3,
    "ca-certificates": _ca_certificates,
    "tzdata": _tzdata,
}


# After the collection.


def owning_packages(base: HostBase, *, host_root: Path = Path("/")) -> dict[bytes, str]:
    """Debian packages by in-image path, from dpkg's file lists; empty where there is no dpkg.

    Not part of ``collect``: reading every list takes as long as a whole shell base.
    """
    by_alias: dict[bytes, bytes] = {}
    for file in base.files:
        if file.source is not None:
            by_alias[b"/" + file.path] = file.path
            # dpkg may know a file of a merged /usr by its old path.
            by_alias[b"/" + file.path.removeprefix(b"usr/")] = file.path
    lists = host_root / "var/lib/dpkg/info"
    owners: dict[bytes, str] = {}
    for name in sorted(os.listdir(lists)) if lists.is_dir() else ():
        if name.endswith(".list"):
            lines = (lists / name).read_bytes().split(b"\n")
            package = name.removesuffix(".list").partition(":")[0]
            for line in filter(by_alias.__contains__, lines):
                owners[by_alias[line]] = package
    return owners


def verify(root: Path, base: HostBase) -> None:
    """Every program's own loader, run inside ``root``, finds all of its libraries there.

    Needs root (chroot). Raises HostError with one line for each program that does not resolve.
    """
    failures: list[str] = []
    for file in base.files:
        if file.loader is None or os.path.basename(file.loader).startswith(b"ld-musl-"):
            continue
        command = [b"chroot", os.fsencode(root), file.loader, b"--list", b"/" + file.path]
        done = subprocess.run(command, capture_output=True, check=False)
        output = (done.stdout + done.stderr).decode(errors="replace")
        wrong = [line.strip() for line in output.splitlines() if "not found" in line]
        if done.returncode != 0 or wrong:
            said = "; ".join(wrong) or output.strip() or f"exit status {done.returncode}"
            failures.append(f"{os.fsdecode(file.path)}: {said}")
    if failures:
        raise HostError(
            f"{len(failures)} of the base's programs do not resolve in {root}",
            hint="name the missing libraries as pieces of the base",
            details="\n".join(failures),
        )
