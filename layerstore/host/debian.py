"""``from: {debian: SUITE}``: a Debian root filesystem made by mmdebstrap, or else debootstrap.

The packages come from where the host's own apt gets them. mmdebstrap's tar is the same, bit for
bit, for the same packages and epoch; debootstrap leaves a directory, which the importer orders.
Whatever of the host the tools leave in the root (its name, its resolver) is taken out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from layerstore.errors import HostError, UsageError
from layerstore.events import Note, Sink, ignore

VARIANTS = {"essential": "minbase", "apt": "minbase", "required": "minbase", "minbase": "minbase",
            "buildd": "buildd", "important": "", "standard": ""}  # fmt: skip
"""mmdebstrap's variants, and the nearest that debootstrap has."""

_SUITE = re.compile(r"[a-z][a-z0-9.-]{0,63}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?")
_HOST_FILES = ("etc/resolv.conf", "etc/hostname")
# debootstrap's own traces: times, logs and downloads.
_TRACES = ("var/log/bootstrap.log", "var/log/dpkg.log", "var/log/alternatives.log",
           "var/log/apt/history.log", "var/log/apt/term.log", "var/log/apt/eipp.log.xz",
           "var/cache/ldconfig/aux-cache", "var/cache/apt/pkgcache.bin",
           "var/cache/apt/srcpkgcache.bin", "etc/machine-id")  # fmt: skip
_HINTS = (
    (r"does not have a Release file|invalid release file|no such script",
     "check the suite's name: the archive has no such suite"),
    (r"unable to locate package|couldn't find these debs",
     "check the packages' names: the archive has no such package"),
    (r"could not resolve|temporary failure|could not connect|unable to connect|unreachable"
     r"|failed to fetch|connection timed out|failed getting release file",
     "see whether apt-get update works here; from: {host: [...]} needs no network"),
    (r"newuidmap|subuid|unshare", "run as root, or give your user a range in /etc/subuid"),
)  # fmt: skip
"""By what the tools say, case aside: the first that matches."""


def bootstrap(
    suite: str,
    *,
    packages: Sequence[str] = (),
    variant: str = "minbase",
    target: Path,
    epoch: int = 0,
    mirror: str | None = None,
    sink: Sink = ignore,
) -> Path:
    """``target``, as a tar (mmdebstrap) or a directory (debootstrap): look which it is.

    ``target`` must not exist; nothing is left there on failure. ``mirror`` is a URL; without one
    the host's apt sources are used. Raises UsageError for a malformed name, HostError where a
    tool, the network or a privilege is missing, with the last lines of the tool's output.
    """
    _check_names(suite, packages, variant)
    if shutil.which("mmdebstrap"):
        command = _mmdebstrap(suite, packages, variant, target, mirror)
    elif shutil.which("debootstrap"):
        if os.geteuid() != 0:
            raise HostError(
                "debootstrap makes a root filesystem only as root",
                hint="apt-get install mmdebstrap, which needs no root, or run as root",
            )
        command = _debootstrap(suite, packages, variant, target, mirror)
    else:
        raise HostError(
            f"neither mmdebstrap nor debootstrap is installed: cannot make a Debian {suite}",
            hint="apt-get install mmdebstrap, or start from: {host: [sh, coreutils]}",
        )
    sink(Note(f"making a Debian {suite} ({variant}) with {command[0]}"))
    # Packages' own scripts honour the epoch too: /etc/shadow has days in it.
    environment = ["env", f"SOURCE_DATE_EPOCH={epoch}", "LC_ALL=C.UTF-8"]
    try:
        _run([*environment, *command], f"{command[0]} could not make a Debian {suite}")
        if target.is_dir():
            _clean(target)
    except BaseException:
        _discard(target)
        raise
    return target


def _check_names(suite: str, packages: Sequence[str], variant: str) -> None:
    if not _SUITE.fullmatch(suite):
        raise UsageError(f"{suite!r} is not the name of a Debian suite", hint="write: bookworm")
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            raise UsageError(
                f"{package!r} is not the name of a Debian package",
                hint="use lower-case letters, digits and + - .",
            )
    if variant not in VARIANTS:
        raise UsageError(
            f"{variant!r} is not a variant of a Debian base",
            hint=f"use one of {', '.join(VARIANTS)}",
        )


def _mmdebstrap(
    suite: str,
    packages: Sequence[str],
    variant: str,
    target: Path,
    mirror: str | None,
) -> list[str]:
    command = ["mmdebstrap", f"--variant={variant}", "--format=tar"]
    command.append(f"--mode={'root' if os.geteuid() == 0 else 'unshare'}")
    if packages:
        command.append(f"--include={','.join(packages)}")
    for name in _HOST_FILES:
        command.append(f'--customize-hook=rm -f "$1"/{name}')
    sources = [f"deb {mirror} {suite} main"] if mirror else _apt_sources(suite)
    return [*command, suite, str(target), *sources]


def _debootstrap(
    suite: str, packages: Sequence[str], variant: str, target: Path, mirror: str | None
) -> list[str]:
    command = ["debootstrap"]
    if VARIANTS[variant]:
        command.append(f"--variant={VARIANTS[variant]}")
    if packages:
        command.append(f"--include={','.join(packages)}")
    archive = [mirror] if mirror else [line.split()[1] for line in _apt_sources(suite)[:1]]
    return [*command, suite, str(target), *archive]


def _apt_sources(suite: str) -> list[str]:
    """One-line apt sources of the suite, its updates and its security archive, as the host has.

    Where the host follows another suite of the same distribution, its main archive with ``suite``;
    none at all where it has no apt, which leaves the choice to the tool.
    """
    if shutil.which("apt-get") is None:
        return []
    form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    rows = [row.split("|") for row in listed.splitlines() if row.count("|") == 3]
    wanted = (suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates")
    components: dict[tuple[str, str], list[str]] = {}
    for uri, release, component, _ in rows:
        if release in wanted and component not in components.get((uri, release), ()):
            components.setdefault((uri, release), []).append(component)
    if not any(release == suite for _, release in components):
        archives = [
            uri
            for uri, release, component, origin in rows
            if origin == "Debian" and component == "main" and re.fullmatch(r"[a-z]+", release)
        ]
        return [f"deb {uri.rstrip('/')} {suite} main" for uri in archives[:1]]
    ordered = sorted(components, key=lambda source: wanted.index(source[1]))
    return [
        f"deb {uri.rstrip('/')} {release} {' '.join(components[uri, release])}"
        for uri, release in ordered
    ]


def _run(command: list[str], brief: str) -> None:
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        umask=0o022,
    ) as process:
        try:
            output = process.communicate()[0].decode(errors="replace")
        except BaseException:
            process.terminate()  # both tools unmount and remove what they made when told so
            process.wait()
            raise
    if process.returncode == 0:
        return
    hints = [hint for said, hint in _HINTS if re.search(said, output, re.IGNORECASE)]
    raise HostError(
        f"{brief} (exit status {process.returncode})",
        hint=hints[0] if hints else "read the tool's last lines, below",
        details="\n".join(output.splitlines()[-20:]),
    )


def _clean(root: Path) -> None:
    """The same for every host and hour: no names, logs, caches or downloads."""
    for name in (*_HOST_FILES, *_TRACES):
        (root / name).unlink(missing_ok=True)
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
        for found in (root / folder).glob("*"):
            if found.is_file():
                found.unlink()


def _discard(target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target, ignore_errors=True)
    else:
        target.unlink(missing_ok=True)
