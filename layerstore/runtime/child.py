"""A clone of the launcher on its way to a command in a container: what every way has in common.

A stage that fails is reported through a pipe, with its name. The child must import nothing after it
is cloned, and nothing of the root is trusted at any time.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import marshal
import os
import select
import stat

from layerstore.errors import LayerstoreError
from layerstore.kernel import caps, execstub, process, seccomp
from layerstore.kernel.fs import openat2
from layerstore.kernel.libc import AT_FDCWD
from layerstore.runtime.plan import DEFAULT_PATH, LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.runtime.plan import LaunchPlan
    from layerstore.runtime.users import Ids

GO = b"g"
PTY = b"p"
"""First byte of the message with the number of the pty's master."""
FAILED = b"f"
"""First byte of the message that says what failed."""
_TEXT_MAX = 200  # characters: four texts of 4 bytes each fit in PIPE_BUF, which is written at once


class Child:
    """What the launcher prepared for the child."""

    def __init__(
        self,
        plan: LaunchPlan,
        *,
        maps_ids: bool,
        go_fd: int,
        report_fd: int,
        stdio: tuple[int, int, int],
        owned_stdio: tuple[int, ...],
        dies_with_parent: bool = True,
    ) -> None:
        self.plan = plan
        self.maps_ids = maps_ids
        """Whether more ids than one exist in the user namespace, or there is none."""
        self.go_fd = go_fd
        self.report_fd = report_fd
        self.stdio = stdio
        self.owned_stdio = owned_stdio
        """Those of the stdio descriptors that are pipes of the launcher's own."""
        self.dies_with_parent = dies_with_parent
        self._stage = "start"

    def run_and_exit(self, launchers_fds: tuple[int, ...]) -> None:
        """Never returns: the command runs, or the report says why not."""
        try:
            gc.disable()  # a collection would touch, and so copy, every page of the launcher's
            for fd in launchers_fds:  # the ends of pipes whose closing is a message
                os.close(fd)
            self._bind_to_parent()
            process.reset_signals()
            self._run()
        except LayerstoreError as error:
            self._report(error.brief, error.hint, error.details, error.exit_code)
        except OSError as error:
            what = error.filename or ""
            shown = os.fsdecode(what) if isinstance(what, (str, bytes)) else ""
            self._report(f"{error.strerror}" + (f": {shown}" if shown else ""), None, None, 125)
        except BaseException as error:  # raising further would run the caller twice
            self._report(f"{type(error).__name__}: {error}", None, None, 125)
        os._exit(125)

    def _report(self, brief: str, hint: str | None, details: str | None, code: int) -> None:
        if code not in (126, 127):
            code = 125
        texts = [text and text[:_TEXT_MAX] for text in (self._stage, brief, hint, details)]
        os.write(self.report_fd, FAILED + marshal.dumps((*texts, code)))

    def _run(self) -> None:
        raise NotImplementedError

    def _bind_to_parent(self) -> None:
        """The child does not outlive the launcher."""
        if self.dies_with_parent:
            process.die_with_parent()

    def _wait(self) -> None:
        if os.read(self.go_fd, 1) != GO:
            os._exit(125)

    def _connect_stdio(self, ids: Ids) -> None:
        """Descriptors 0 to 2 are the container's, and writable by the user it runs as."""
        if self.plan.terminal:
            slave = self._make_terminal(ids)
            streams = [slave, slave, slave]
        else:
            for fd in self.owned_stdio:
                os.fchown(fd, ids.uid, ids.gid)
            # Above 2, so that none is closed before it is in its place.
            streams = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in self.stdio]
        for place, fd in enumerate(streams):
            os.dup2(fd, place)

    def _make_terminal(self, ids: Ids) -> int:
        """The command's side of a terminal, which controls the session."""
        raise NotImplementedError

    def _enter_cwd(self) -> None:
        """In the working directory, by a way that leaves the root nowhere: CVE-2024-21626."""
        fd = openat2(AT_FDCWD, self.plan.cwd, os.O_PATH | os.O_DIRECTORY)
        os.fchdir(fd)
        os.close(fd)
        if not os.getcwdb().startswith(b"/"):
            raise LaunchError("the working directory is outside of the container")

    def _become(self, ids: Ids) -> None:
        """The user, with no more capabilities than planned, for good."""
        kept = caps.mask_of(self.plan.capabilities)
        caps.drop_bounding(kept)
        if self.plan.seccomp and not self.plan.no_new_privs:
            # Without no_new_privs only CAP_SYS_ADMIN may load a filter, and that is about to go.
            seccomp.load(self.plan.seccomp)
        try:
            if self.maps_ids:
                os.setgroups(ids.groups)
            os.setresgid(ids.gid, ids.gid, ids.gid)
            os.setresuid(ids.uid, ids.uid, ids.uid)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise LaunchError(
                f"uid {ids.uid} and gid {ids.gid} don't exist in a container of a plain user "
                "without enough sub-ids",
                hint="run as root, or add ranges for you to /etc/subuid and /etc/subgid and "
                "install newuidmap and newgidmap",
            ) from error
        caps.keep_only(kept)
        if self.plan.no_new_privs:
            process.forbid_new_privileges()
            if self.plan.seccomp:
                seccomp.load(self.plan.seccomp)  # what follows must pass it
        self._bind_to_parent()  # again: the change of user undid it
        if self.dies_with_parent and is_hung_up(self.go_fd):
            os._exit(125)

    def _exec(self, ids: Ids) -> None:
        env = complete_env(self.plan, ids.home)
        self._stage = "find the command"
        path = find_command(self.plan.argv[0], env[b"PATH"])
        self._stage = "run the command"
        os.umask(0o022)
        process.restore_signals(())
        os.dup2(self.report_fd, execstub.REPORT_FD)
        process.close_on_exec_from(execstub.REPORT_FD + 1)
        self.report_fd = execstub.REPORT_FD
        program = execstub.sealed_init() if self.plan.init else execstub.sealed_stub()
        execstub.exec_through(program, path, self.plan.argv, env)


def is_hung_up(pipe_fd: int) -> bool:
    """Whether nobody can write to the pipe any more."""
    poll = select.poll()
    poll.register(pipe_fd, 0)
    return bool(poll.poll(0))


def complete_env(plan: LaunchPlan, home: bytes) -> dict[bytes, bytes]:
    """The plan's environment, with what every program expects."""
    env = {b"PATH": DEFAULT_PATH, b"HOSTNAME": plan.hostname, b"HOME": home}
    if plan.terminal:
        env[b"TERM"] = b"xterm"
    env.update(plan.env)
    return env


def find_command(name: bytes, path: bytes) -> bytes:
    """Where the program is, as execvp finds it. Raises LaunchError 126 or 127."""
    shown = os.fsdecode(name)
    if b"/" in name:
        return name
    seen = None
    for directory in path.split(b":"):
        candidate = (directory or b".") + b"/" + name
        try:
            mode = os.stat(candidate).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode):
            if os.access(candidate, os.X_OK):
                return candidate
            seen = seen or candidate
    if seen is not None:
        raise LaunchError(
            f"{os.fsdecode(seen)} is not executable", hint="chmod +x it", exit_code=126
        )
    raise LaunchError(
        f"{shown!r} is not in the container's PATH ({os.fsdecode(path)})",
        hint="check the spelling, or name the program by its whole path",
        exit_code=127,
    )


def exec_failure(argv0: bytes, code: int) -> LaunchError:
    """What an errno of the last execve means: 127 for what isn't there, else 126."""
    shown = repr(os.fsdecode(argv0))
    if code in (errno.ENOENT, errno.ENOTDIR):
        return LaunchError(
            f"{shown} can't be started: it, or the interpreter or loader that it names, is not "
            "in the container",
            hint="check the path; a dynamic program also needs its loader in the image",
            exit_code=127,
        )
    reason = {
        errno.EACCES: "it is a directory, not executable, or on a noexec mount",
        errno.ENOEXEC: "it is no program, and no script that starts with #!",
    }.get(code, os.strerror(code))
    return LaunchError(f"{shown} can't be started: {reason}", exit_code=126)
