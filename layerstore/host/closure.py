"""Which files of a host one of its programs needs to start: the search of ld.so(8), read-only.

Nothing is executed: ldd runs the program it is asked about, and is wrong for other machines. A
``HostTree`` names files as the host does, with absolute ``bytes``, and never leaves its root.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from layerstore.errors import FormatError, HostError
from layerstore.formats import elf
from layerstore.formats.elf import Elf

_MOST_LINKS = 40  # as the kernel's MAXSYMLINKS


@dataclass(frozen=True, slots=True)
class Found:
    """Where a name leads: the file itself, and every symlink passed on the way."""

    real: bytes
    mode: int
    links: tuple[tuple[bytes, bytes], ...]
    """(path of the link with no link before it, its target), outermost first."""


class HostTree:
    """The files below ``root``, remembering what it has looked at: for one short collection."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root).rstrip(b"/")
        self._found: dict[bytes, Found | None] = {b"/": Found(b"/", stat.S_IFDIR, ())}
        self._elves: dict[bytes, Elf | None] = {}

    def path(self, real: bytes) -> bytes:
        """The path to open; ``real`` must have no symlink before its last component."""
        return self._root + real

    def find(self, name: bytes, _links_left: int = _MOST_LINKS) -> Found | None:
        """None where nothing is, where a link dangles and where links loop."""
        if name in self._found:
            return self._found[name]
        found = self._look(name, _links_left)
        self._found[name] = found
        return found

    def _look(self, name: bytes, links_left: int) -> Found | None:
        parent_name, _, base = name.rpartition(b"/")
        parent = self.find(parent_name or b"/", links_left)
        if parent is None or not stat.S_ISDIR(parent.mode):
            return None
        if base in (b"", b"."):
            return parent
        if base == b"..":
            above = os.path.dirname(parent.real)
            return Found(above, stat.S_IFDIR, parent.links)
        here = parent.real.rstrip(b"/") + b"/" + base
        try:
            mode = os.lstat(self._root + here).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise _unreadable(here, error) from error
        if not stat.S_ISLNK(mode):
            return Found(here, mode, parent.links)
        target = os.readlink(self._root + here)
        if links_left == 0:
            return None
        onward = target if target.startswith(b"/") else parent.real.rstrip(b"/") + b"/" + target
        end = self.find(onward.rstrip(b"/") or b"/", links_left - 1)
        if end is None:
            return None
        return Found(end.real, end.mode, (*parent.links, (here, target), *end.links))

    def is_file(self, name: bytes) -> bool:
        found = self.find(name)
        return found is not None and stat.S_ISREG(found.mode)

    def list(self, real: bytes) -> list[bytes]:
        """The names in a directory, sorted."""
        try:
            return sorted(os.listdir(self._root + real))
        except PermissionError as error:
            raise _unreadable(real, error) from error

    def head(self, real: bytes, size: int) -> bytes:
        """The first bytes of a file."""
        descriptor = self._open(real)
        try:
            return os.pread(descriptor, size, 0)
        finally:
            os.close(descriptor)

    def text(self, name: bytes) -> bytes | None:
        """The whole of a small file; None where there is none."""
        found = self.find(name)
        if found is None or not stat.S_ISREG(found.mode):
            return None
        with open(self._open(found.real), "rb") as file:
            return file.read()

    def elf(self, name: bytes) -> Elf | None:
        """None for whatever is not an ELF file, a missing file included."""
        found = self.find(name)
        if found is None or not stat.S_ISREG(found.mode):
            return None
        real = found.real
        if real not in self._elves:
            self._elves[real] = self._parse(real)
        return self._elves[real]

    def _parse(self, real: bytes) -> Elf | None:
        descriptor = self._open(real)
        try:
            if os.pread(descriptor, 4, 0) != elf.MAGIC:
                return None
            return elf.parse(lambda offset, size: os.pread(descriptor, size, offset))
        except FormatError as error:
            raise FormatError(f"{os.fsdecode(real)}: {error.brief}") from error
        finally:
            os.close(descriptor)

    def _open(self, real: bytes) -> int:
        try:
            return os.open(self._root + real, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise _unreadable(real, error) from error


def _unreadable(real: bytes, error: OSError) -> HostError:
    return HostError(
        f"cannot read {os.fsdecode(real)}: {error.strerror}",
        hint="run as root, or leave this file out of the base",
    )


@dataclass(frozen=True, slots=True)
class Missing:
    """A library that nobody provides."""

    soname: bytes
    needed_by: bytes
    looked_in: tuple[bytes, ...]


@dataclass(slots=True, eq=False)
class _Object:
    """A loaded object. ``name`` is the path by which it was found, symlinks and all."""

    name: bytes
    elf: Elf
    loader: _Object | None
    origin: bytes


@dataclass(slots=True)
class Closure:
    """The objects of one process in load order, by the paths through which they were found."""

    main: _Object
    objects: list[_Object] = field(default_factory=list)
    by_name: dict[bytes, _Object] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    """From DT_NEEDED: without these it does not start."""
    unopened: list[Missing] = field(default_factory=list)
    """Those it may open later: without these something fails at run time."""
    outside: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(soname, path) of those found only through /etc/ld.so.conf."""

    @property
    def names(self) -> tuple[bytes, ...]:
        return tuple(loaded.name for loaded in self.objects)


# By (machine, bits): the loader that an object without PT_INTERP is taken to run under, and
# glibc's directories where that loader cannot be asked.
_LOADERS = {
    (elf.EM_X86_64, 64): (b"/lib64/ld-linux-x86-64.so.2", b"x86_64-linux-gnu", b"x86_64"),
    (elf.EM_386, 32): (b"/lib/ld-linux.so.2", b"i386-linux-gnu", b"i686"),
    (elf.EM_AARCH64, 64): (b"/lib/ld-linux-aarch64.so.1", b"aarch64-linux-gnu", b"aarch64"),
    (elf.EM_ARM, 32): (b"/lib/ld-linux-armhf.so.3", b"arm-linux-gnueabihf", b"v7l"),
    (elf.EM_PPC64, 64): (b"/lib64/ld64.so.2", b"powerpc64le-linux-gnu", b"power8"),
    (elf.EM_S390, 64): (b"/lib/ld64.so.1", b"s390x-linux-gnu", b"z900"),
    (elf.EM_RISCV, 64): (b"/lib/ld-linux-riscv64-lp64d.so.1", b"riscv64-linux-gnu", b"riscv64"),
}
# glibc keeps its default directories as one run of strings: "/lib64/\0/usr/lib64/\0".
_SYSTEM_DIRECTORIES = re.compile(rb"\0((?:/[\w.+/-]+/\0){2,})")
_MUSL_DEFAULT = (b"/lib", b"/usr/local/lib", b"/usr/lib")


class Libraries:
    """The search for libraries, for the programs of one host."""

    def __init__(self, host: HostTree) -> None:
        self._host = host
        self._defaults: dict[bytes, tuple[bytes, ...]] = {}
        self._configured: tuple[bytes, ...] | None = None

    def closure(self, name: bytes, within: Closure | None = None) -> Closure:
        """What loads when ``name`` is executed, or opened by the program of ``within``.

        The order is the loader's, breadth first, so that what an earlier object's RUNPATH found
        satisfies a later object that has none. Raises HostError where ``name`` is not ELF.
        """
        found, image = self._host.find(name), self._host.elf(name)
        if found is None or image is None:
            raise HostError(f"{os.fsdecode(name)} is not an ELF file")
        start = _Object(name, image, within.main if within else None, os.path.dirname(found.real))
        result = Closure(within.main if within else start)
        if within:
            result.by_name.update(within.by_name)
        result.by_name[image.soname or name] = start
        result.objects.append(start)
        self._add_loader(start, result)
        self._follow(result, 0)
        opened = len(result.objects)
        for owner, sonames, is_required in self._opened_later(result, within):
            if not any(self._load(soname, owner, result) for soname in sonames) and is_required:
                result.unopened.append(self._missing(sonames[0], owner, result.main))
        self._follow(result, opened)
        return result

    def _add_loader(self, start: _Object, result: Closure) -> None:
        interpreter = start.elf.interpreter
        if interpreter is None or start is not result.main:
            return
        image = self._host.elf(interpreter)
        if image is None or not image.fits(start.elf):
            result.missing.append(Missing(interpreter, start.name, (interpreter,)))
            return
        loader = _Object(interpreter, image, start, os.path.dirname(interpreter))
        result.objects.append(loader)
        for known in (image.soname, os.path.basename(interpreter)):
            if known:
                result.by_name[known] = loader
        if _is_musl(interpreter):
            result.by_name.setdefault(b"libc.so", loader)

    def _follow(self, result: Closure, first: int) -> None:
        at = first
        while at < len(result.objects):
            owner = result.objects[at]
            for soname in owner.elf.needed:
                if not self._load(soname, owner, result):
                    result.missing.append(self._missing(soname, owner, result.main))
            at += 1

    def _missing(self, soname: bytes, owner: _Object, main: _Object) -> Missing:
        looked_in = dict.fromkeys(where for where, _ in self._directories(owner, main))
        return Missing(soname, owner.name, tuple(looked_in))

    def _load(self, soname: bytes, owner: _Object, result: Closure) -> bool:
        """True once the library is among the objects."""
        if soname in result.by_name:
            return True
        for path, is_outside in self._choices(soname, owner, result.main):
            image = self._host.elf(path)
            if image is None or not image.fits(owner.elf) or image.kind != elf.ET_DYN:
                continue
            loaded = _Object(path, image, owner, os.path.dirname(path))
            result.objects.append(loaded)
            result.by_name[soname] = loaded
            if image.soname:
                result.by_name.setdefault(image.soname, loaded)
            if is_outside:
                result.outside.append((soname, path))
            return True
        return False

    def _choices(
        self, soname: bytes, owner: _Object, main: _Object
    ) -> Iterator[tuple[bytes, bool]]:
        if b"/" in soname:
            yield from self._own((soname,), owner, main)
            return
        for directory, is_outside in self._directories(owner, main):
            yield directory.rstrip(b"/") + b"/" + soname, is_outside

    def _directories(self, owner: _Object, main: _Object) -> Iterator[tuple[bytes, bool]]:
        """(directory, whether only /etc/ld.so.conf names it), in the loader's order."""
        interpreter = self._interpreter(main)
        is_musl = _is_musl(interpreter)
        holders = [owner]
        if owner.elf.runpath is None or is_musl:
            while holders[-1].loader is not None:
                holders.append(holders[-1].loader)
            if main not in holders:
                holders.append(main)
        for holder in holders:
            if is_musl:
                lists = holder.elf.runpath or holder.elf.rpath
            else:
                lists = holder.elf.rpath if holder.elf.runpath is None else ()
            yield from self._own(lists, holder, main)
        if not is_musl:
            yield from self._own(owner.elf.runpath or (), owner, main)
        defaults = self.default_directories(interpreter, owner.elf)
        if not is_musl:
            standard = {self._real(directory) for directory in defaults}
            for directory in self._conf():
                if self._real(directory) not in standard:
                    yield directory, True
        if not owner.elf.no_default_path:
            for directory in defaults:
                yield directory, False

    def _own(
        self, lists: tuple[bytes, ...], holder: _Object, main: _Object
    ) -> Iterator[tuple[bytes, bool]]:
        for directory in lists:
            expanded = self._expanded(directory, holder, main)
            if expanded is not None:
                yield expanded, False

    def _expanded(self, text: bytes, holder: _Object, main: _Object) -> bytes | None:
        """``$ORIGIN``, ``$LIB`` and ``$PLATFORM`` filled in; None for a relative path."""
        if b"$" in text:
            defaults = self.default_directories(self._interpreter(main), holder.elf)
            known = _LOADERS.get((holder.elf.machine, holder.elf.bits))
            values = {
                b"ORIGIN": holder.origin,
                b"LIB": defaults[0].strip(b"/") if defaults else b"lib",
                b"PLATFORM": known[2] if known else b"",
            }
            text = re.sub(
                rb"\$(?:\{(ORIGIN|LIB|PLATFORM)\}|(ORIGIN|LIB|PLATFORM)(?![A-Za-z0-9_]))",
                lambda match: values[match[1] or match[2]],
                text,
            )
        return text if text.startswith(b"/") else None

    def _interpreter(self, main: _Object) -> bytes:
        if main.elf.interpreter is not None:
            return main.elf.interpreter
        known = _LOADERS.get((main.elf.machine, main.elf.bits))
        return known[0] if known else b""

    def default_directories(self, interpreter: bytes, image: Elf) -> tuple[bytes, ...]:
        """The directories that this loader searches by itself, no cache needed.

        Read out of the loader, for distributions differ; a table stands in where it has none.
        """
        if interpreter not in self._defaults:
            self._defaults[interpreter] = self._read_defaults(interpreter, image)
        return self._defaults[interpreter]

    def _read_defaults(self, interpreter: bytes, image: Elf) -> tuple[bytes, ...]:
        if _is_musl(interpreter):
            listed = self._host.text(musl_path_file(interpreter))
            return tuple(re.split(rb"[:\n]+", listed.strip())) if listed else _MUSL_DEFAULT
        run = _SYSTEM_DIRECTORIES.search(self._host.text(interpreter) or b"")
        if run:
            return tuple(part.rstrip(b"/") for part in run[1].split(b"\0") if part)
        known = _LOADERS.get((image.machine, image.bits))
        suffixes = [b"/" + known[1]] if known else []
        suffixes += [b"64", b""] if image.bits == 64 else [b""]
        return tuple(top + suffix for suffix in suffixes for top in (b"/lib", b"/usr/lib"))

    def _conf(self) -> tuple[bytes, ...]:
        if self._configured is None:
            self._configured = tuple(dict.fromkeys(self._read_conf(b"/etc/ld.so.conf", 0)))
        return self._configured

    def _read_conf(self, name: bytes, depth: int) -> Iterator[bytes]:
        """ldconfig(8): a directory a line, ``include PATTERN`` relative to the file, ``#``."""
        for line in (self._host.text(name) or b"").splitlines() if depth < 8 else ():
            words = line.partition(b"#")[0].split()
            if not words or words[0] == b"hwcap":
                continue
            if words[0] != b"include":
                directory = words[0].partition(b"=")[0].rstrip(b"/")
                if directory.startswith(b"/"):
                    yield directory
                continue
            for pattern in words[1:]:
                for included in self._matches(os.path.join(os.path.dirname(name), pattern)):
                    yield from self._read_conf(included, depth + 1)

    def _matches(self, pattern: bytes) -> list[bytes]:
        folder, _, base = pattern.rpartition(b"/")
        found = self._host.find(folder or b"/")
        if found is None or not stat.S_ISDIR(found.mode):
            return []
        names = fnmatch.filter(self._host.list(found.real), base)
        return [folder + b"/" + name for name in names if not name.startswith(b".")]

    def _real(self, directory: bytes) -> bytes:
        found = self._host.find(directory)
        return found.real if found else directory

    def _opened_later(
        self, result: Closure, within: Closure | None
    ) -> Iterator[tuple[_Object, tuple[bytes, ...], bool]]:
        """(who opens, names of which one is enough, whether its absence is worth a word).

        ``.note.dlopen`` where a file has one, and what glibc itself is known to open.
        """
        everything = [*(within.objects if within else ()), *result.objects]
        for loaded in list(result.objects):
            for note in loaded.elf.dlopens:
                if note.priority != "suggested" and note.sonames:
                    yield loaded, note.sonames, note.priority == "required"
        libc = next((one for one in everything if one.elf.soname == b"libc.so.6"), None)
        if libc is None:
            return
        users = [one for one in everything if not (one.elf.soname or b"").startswith(_GLIBC_OWN)]
        mentioned = {name for one in users for name in one.elf.mentions}
        if mentioned & _UNWINDS:
            yield libc, (b"libgcc_s.so.1",), True
        if mentioned & _LOOKS_UP and b"GLIBC_2.34" not in libc.elf.mentions:
            # Since 2.34 "files" and "dns" are inside libc.so.6 itself.
            yield libc, (b"libnss_files.so.2",), True
            yield libc, (b"libnss_dns.so.2",), True


_GLIBC_OWN = (b"libc.so.", b"libpthread.so.", b"ld-linux", b"ld64", b"libnss_", b"libgcc_s.so.")
_UNWINDS = {b"pthread_cancel", b"pthread_exit", b"thrd_exit"}
_LOOKS_UP = {b"getpwnam", b"getpwuid", b"getgrnam", b"getgrgid", b"getaddrinfo", b"gethostbyname"}


def _is_musl(interpreter: bytes) -> bool:
    return os.path.basename(interpreter).startswith(b"ld-musl-")


def musl_path_file(interpreter: bytes) -> bytes:
    """Where musl's loader reads its search path: ``/etc/ld-musl-x86_64.path``."""
    return b"/etc/" + os.path.basename(interpreter).partition(b".")[0] + b".path"
