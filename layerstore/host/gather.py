"""Files of a host on their way into a base: each with what it needs, and the skeleton around them.

Knows programs, scripts, directories and Python interpreters; what a piece of a base is called and
where it lies, ``host.pieces`` knows. Reads the host only, and executes nothing.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from layerstore.errors import FormatError, HostError, UsageError
from layerstore.formats import elf, ldcache
from layerstore.host.closure import Closure, HostTree, Libraries, Missing, musl_path_file

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATH_DIRECTORIES = tuple(PATH.encode().split(b":"))


@dataclass(frozen=True, slots=True)
class HostFile:
    """One entry of the base, owned by root, with no setuid bit, capability or xattr."""

    path: bytes
    """In the image, with no leading slash."""
    kind: Literal["directory", "file", "symlink"]
    mode: int
    """0o755 or 0o644 by executability; 0o777 for symlinks; 0o1777 and 0o700 in the skeleton."""
    source: Path | None = None
    """The host's file to read, for a file that is not generated."""
    content: bytes | None = None
    """A generated file."""
    link: bytes = b""
    loader: bytes | None = None
    """The loader that resolves this ELF file in the image, for those that are worth a check."""


# Left out of a standard library: tests, what needs a display, other people's packages, and caches
# whose bytes depend on when the host compiled them.
_STDLIB_WITHOUT = frozenset(
    (b"test", b"tests", b"idlelib", b"turtledemo", b"turtle.py", b"tkinter", b"__pycache__",
     b"site-packages", b"dist-packages")
)  # fmt: skip
_STDLIB_WITHOUT_PREFIXES = (b"config-", b"_tkinter.", b"_test", b"_ctypes_test.", b"_xxtestfuzz.",
                            b"xxlimited")  # fmt: skip


def _is_left_out_of_stdlib(name: bytes) -> bool:
    return name in _STDLIB_WITHOUT or name.startswith(_STDLIB_WITHOUT_PREFIXES)


@dataclass(slots=True)
class Gatherer:
    """The base so far. Keys are host paths with no symlink before their last component."""

    host: HostTree
    libraries: Libraries = field(init=False)
    nodes: dict[bytes, HostFile] = field(default_factory=dict)
    fills: dict[bytes, bytes] = field(default_factory=dict)
    """Symlinks for names that nothing else provides: path to target."""
    examined: set[bytes] = field(default_factory=set)
    environments: set[bytes] = field(default_factory=set)
    """The pyvenv.cfg files that were followed."""
    cached: dict[tuple[bytes, int], ldcache.CachedLibrary] = field(default_factory=dict)
    is_little_endian: bool = True
    has_glibc: bool = False
    has_locale: bool = False
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.libraries = Libraries(self.host)

    def which(self, program: bytes) -> bytes | None:
        """The path of a program, as a container with the default PATH will find it."""
        for directory in _PATH_DIRECTORIES:
            found = self.host.find(directory + b"/" + program)
            if found and stat.S_ISREG(found.mode) and found.mode & 0o111:
                return directory + b"/" + program
        return None

    def place(self, name: bytes, *, wanted_by: str) -> bytes:
        """The real path of ``name``, it and every symlink on the way being in the base."""
        found = self.host.find(name)
        if found is None:
            raise HostError(
                f"{wanted_by} needs {os.fsdecode(name)}, which is not on this host",
                hint="install it, or leave out what needs it",
            )
        for at, target in found.links:
            self.nodes.setdefault(at, HostFile(at[1:], "symlink", 0o777, link=target))
        if found.real not in self.nodes and found.real != b"/":
            self.nodes[found.real] = self._node(found.real, found.mode)
        return found.real

    def _node(self, real: bytes, mode: int) -> HostFile:
        if stat.S_ISDIR(mode):
            return HostFile(real[1:], "directory", 0o755)
        if not stat.S_ISREG(mode):
            raise UsageError(
                f"{os.fsdecode(real)} is a {_kind_word(mode)}",
                hint="name files and directories only: an image has no use for it",
            )
        source = Path(os.fsdecode(self.host.path(real)))
        return HostFile(real[1:], "file", 0o755 if mode & 0o111 else 0o644, source)

    def program(
        self,
        name: bytes,
        *,
        wanted_by: str,
        within: Closure | None = None,
        provided: frozenset[bytes] = frozenset(),
    ) -> None:
        """``name`` and all that it needs to run. Any other file is taken as it is.

        ``within`` is the program that will open it, ``provided`` the names of libraries that this
        program has ways to find.
        """
        real = self.place(name, wanted_by=wanted_by)
        self._place_virtual_environment(name)
        if real in self.examined or self.nodes[real].kind != "file":
            return
        self.examined.add(real)
        head = self.host.head(real, 256)
        closure: Closure | None = None
        if head.startswith(elf.MAGIC):
            closure = self._with_libraries(name, real, within, provided)
        elif head.startswith(b"#!") and self.nodes[real].mode & 0o111:
            self._with_interpreter(real, head)
        if closure is None or closure.main.elf.interpreter is not None:
            self._with_standard_library(real, closure)

    def _with_libraries(
        self, name: bytes, real: bytes, within: Closure | None, provided: frozenset[bytes]
    ) -> Closure | None:
        image = self.host.elf(real)
        if image is None or image.is_static or image.kind not in (elf.ET_EXEC, elf.ET_DYN):
            return None
        closure = self.libraries.closure(name, within)
        known = provided if image.interpreter is None else frozenset[bytes]()
        missing = [one for one in closure.missing if one.soname not in known]
        if missing:
            raise _missing_library(missing[0], real)
        for one in closure.unopened:
            self.warnings.append(
                f"{os.fsdecode(one.needed_by)} may open {os.fsdecode(one.soname)} at run time,"
                " which is not on this host"
            )
        for loaded in closure.objects:
            placed = self.place(loaded.name, wanted_by=os.fsdecode(real))
            self.examined.add(placed)
            self.has_glibc |= loaded.elf.soname == b"libc.so.6"
        for soname, path in closure.outside:
            self._cache(soname, path, image)
        interpreter = closure.main.elf.interpreter
        if interpreter is not None:
            self.nodes[real] = replace(self.nodes[real], loader=interpreter)
            if self.host.is_file(musl_path_file(interpreter)):
                self.place(musl_path_file(interpreter), wanted_by=os.fsdecode(interpreter))
        return closure

    def _cache(self, soname: bytes, path: bytes, image: elf.Elf) -> None:
        flags = ldcache.flags_of(image)
        if flags is None:
            self.warnings.append(
                f"{os.fsdecode(path)} is found through /etc/ld.so.conf only, and an ld.so.cache for"
                f" machine {image.machine} cannot be written: run ldconfig in the image"
            )
            return
        self.is_little_endian = image.little_endian
        self.cached.setdefault((soname, flags), ldcache.CachedLibrary(soname, path, flags))

    def _with_interpreter(self, real: bytes, head: bytes) -> None:
        """What ``#!`` names; for env(1), the program that env will run as well."""
        words = head[2:].partition(b"\n")[0].split()
        if not words:
            return
        script = os.fsdecode(real)
        self.program(words[0], wanted_by=script)
        if os.path.basename(words[0]) != b"env":
            return
        names = [word for word in words[1:] if not word.startswith(b"-") and b"=" not in word]
        if not names:
            return
        program = self.which(names[0])
        if program is None:
            raise HostError(
                f"{script} is a script for {os.fsdecode(names[0])}, which is not on this host",
                hint=f"install it, or leave {script} out of the base",
                details=f"looked in {PATH}",
            )
        self.program(program, wanted_by=script)

    def _place_virtual_environment(self, name: bytes) -> None:
        """pyvenv.cfg beside any link to an interpreter, and the interpreter that a copy stands for.

        Where the links lead is the base interpreter already; a copied one says so in ``home``.
        """
        found = self.host.find(name)
        stops = [at for at, _ in found.links] + [found.real] if found else []
        for stop in stops:
            if not os.path.basename(stop).startswith(b"python"):
                continue
            configuration = os.path.dirname(os.path.dirname(stop)) + b"/pyvenv.cfg"
            text = self.host.text(configuration)
            if text is None or configuration in self.environments:
                continue
            self.environments.add(configuration)
            self.place(configuration, wanted_by=os.fsdecode(stop))
            home = re.search(rb"^home\s*=\s*(.+?)\s*$", text, re.MULTILINE)
            interpreter = home[1] + b"/python3" if home else b""
            if self.host.is_file(interpreter):
                self.program(interpreter, wanted_by=os.fsdecode(configuration))

    def _with_standard_library(self, real: bytes, closure: Closure | None) -> None:
        """For a Python interpreter, the standard library of its prefix: it starts with no less.

        Found by its landmark os.py, as the interpreter itself does.
        """
        named = re.fullmatch(rb"python(3\.\d+t?)?3?", os.path.basename(real))
        if named is None:
            return
        prefix = os.path.dirname(os.path.dirname(real)).rstrip(b"/")
        if self.host.is_file(prefix + b"/pyvenv.cfg"):
            return  # a virtual environment's copy: the library is its base interpreter's
        version = named[1] or self._only_version(prefix)
        for library in (b"/lib/python", b"/lib64/python"):
            stdlib = prefix + library + version
            if version and self.host.is_file(stdlib + b"/os.py"):
                self.tree(
                    stdlib,
                    wanted_by=os.fsdecode(real),
                    within=closure,
                    leave_out=_is_left_out_of_stdlib,
                    scripts=False,
                )
                return
        if version and closure is not None:
            self.warnings.append(f"{os.fsdecode(real)} has no standard library below its prefix")

    def _only_version(self, prefix: bytes) -> bytes:
        found = self.host.find(prefix + b"/lib")
        names = self.host.list(found.real) if found else []
        versions = [name[6:] for name in names if re.fullmatch(rb"python3\.\d+t?", name)]
        versions = [
            one for one in versions if self.host.is_file(prefix + b"/lib/python" + one + b"/os.py")
        ]
        return versions[0] if len(versions) == 1 else b""

    def tree(
        self,
        name: bytes,
        *,
        wanted_by: str,
        within: Closure | None = None,
        leave_out: Callable[[bytes], bool] = lambda name: False,
        scripts: bool = True,
    ) -> None:
        """A directory with all below it, each program and library in it with what it needs.

        What cannot run on this host either is a warning here. ``scripts`` off takes scripts and
        other text as they are.
        """
        top = self.place(name, wanted_by=wanted_by)
        waiting, programs = [top], list[bytes]()
        while waiting:
            directory = waiting.pop()
            for entry in self.host.list(directory):
                at = directory + b"/" + entry
                if leave_out(entry):
                    continue
                mode = os.lstat(self.host.path(at)).st_mode
                if stat.S_ISDIR(mode):
                    self.nodes.setdefault(at, HostFile(at[1:], "directory", 0o755))
                    waiting.append(at)
                elif stat.S_ISLNK(mode):
                    self._tree_link(at, top)
                elif stat.S_ISREG(mode):
                    self.nodes.setdefault(at, self._node(at, mode))
                    if scripts or b".so" in entry:
                        programs.append(at)
                else:
                    self.warnings.append(f"{os.fsdecode(at)} is a {_kind_word(mode)}: left out")
        names = frozenset(os.path.basename(at) for at in programs)
        for at in programs:
            try:
                self.program(at, wanted_by=os.fsdecode(top), within=within, provided=names)
            except (HostError, FormatError) as error:
                self.warnings.append(f"{error.brief}: {os.fsdecode(at)} is kept, but will not run")

    def _tree_link(self, at: bytes, top: bytes) -> None:
        target = os.readlink(self.host.path(at))
        self.nodes.setdefault(at, HostFile(at[1:], "symlink", 0o777, link=target))
        found = self.host.find(at)
        if found is None or (found.real + b"/").startswith(top + b"/"):
            return
        if stat.S_ISDIR(found.mode):
            self.warnings.append(
                f"{os.fsdecode(at)} leads to {os.fsdecode(found.real)}, a directory outside:"
                " name it as a piece too if it is needed"
            )
        elif stat.S_ISREG(found.mode):
            self.program(at, wanted_by=os.fsdecode(top))

    def finish(self) -> tuple[HostFile, ...]:
        """The sorted files, the skeleton, the locale and a library cache now among them."""
        for locale in (b"/usr/lib/locale/C.utf8", b"/usr/lib/locale/C.UTF-8"):
            if self.has_glibc and self.host.find(locale) is not None:
                self.tree(locale, wanted_by="the C.UTF-8 locale", scripts=False)
                self.has_locale = True
        self._add_skeleton()
        for at, target in self.fills.items():
            self.nodes.setdefault(at, HostFile(at[1:], "symlink", 0o777, link=target))
        if self.cached:
            content = ldcache.emit(self.cached.values(), little_endian=self.is_little_endian)
            self._generate(b"/etc/ld.so.cache", content)
        for at in list(self.nodes):
            parent = os.path.dirname(at)
            while parent != b"/" and parent not in self.nodes:
                self.nodes[parent] = HostFile(parent[1:], "directory", 0o755)
                parent = os.path.dirname(parent)
        return tuple(self.nodes[at] for at in sorted(self.nodes))

    def _generate(self, at: bytes, content: bytes) -> None:
        self.nodes.setdefault(at, HostFile(at[1:], "file", 0o644, content=content))

    def _add_skeleton(self) -> None:
        for name in (b"/bin", b"/sbin", b"/lib"):
            # As the host has them, for every path in the base is the host's.
            if self.host.find(name) is not None:
                self.place(name, wanted_by="the skeleton")
        for at, mode in _DIRECTORIES.items():
            self.nodes.setdefault(at, HostFile(at[1:], "directory", mode))
        for at, content in _GENERATED.items():
            self._generate(at, content)


_DIRECTORIES = dict.fromkeys(
    (b"/dev", b"/etc", b"/home", b"/proc", b"/run", b"/sys", b"/usr", b"/usr/bin", b"/usr/lib",
     b"/usr/local/bin", b"/usr/local/lib", b"/usr/sbin", b"/var/cache", b"/var/lib", b"/var/log"),
    0o755,
) | {b"/root": 0o700, b"/tmp": 0o1777, b"/var/tmp": 0o1777}  # fmt: skip

_GENERATED = {
    b"/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n"
    b"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    b"/etc/group": b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    b"/etc/hosts": b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    # The host's may name modules, like systemd, that are not in the base.
    b"/etc/nsswitch.conf": b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
    b"networks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n",
    b"/etc/os-release": b'NAME="layerstore host base"\nPRETTY_NAME="layerstore host base"\n'
    b"ID=layerstore\n",
}


def _missing_library(missing: Missing, program: bytes) -> HostError:
    needed_by, soname = os.fsdecode(missing.needed_by), os.fsdecode(missing.soname)
    for_whom = "" if missing.needed_by == program else f" (for {os.fsdecode(program)})"
    return HostError(
        f"{needed_by} needs {soname}{for_whom}, which is not on this host",
        hint=f"install the package that has {soname}, or leave {os.fsdecode(program)} out",
        details="looked in " + ", ".join(os.fsdecode(where) for where in missing.looked_in),
    )


def _kind_word(mode: int) -> str:
    words = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFBLK: "block device"}
    return words.get(stat.S_IFMT(mode), "character device")
