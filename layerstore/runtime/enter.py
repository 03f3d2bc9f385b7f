"""One more command in a container that runs: ``exec``.

::

    launcher ── guide: joins the namespaces and the cgroup, clones, ends
          └──── the command: a child of the launcher again, in the container's pid namespace

A command that is left running becomes the container's first process' child instead: were it one of
the host's init, the container could not end before that has reaped it.
"""

from __future__ import annotations

import os
import select

from layerstore.errors import ConflictError
from layerstore.kernel import namespaces, process
from layerstore.kernel.cgroups import Cgroup
from layerstore.kernel.fs import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from layerstore.runtime.child import Child
from layerstore.runtime.plan import LaunchError
from layerstore.runtime.supervision import HANDLED, Outcome, Supervision, Watch
from layerstore.runtime.terminal import open_pty, take_as_controlling
from layerstore.runtime.users import resolve_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.runtime.plan import LaunchPlan
    from layerstore.runtime.state import State
    from layerstore.runtime.supervision import Output
    from layerstore.runtime.users import Ids

_CHILD = b"c"
"""First byte of the message with the command's pid."""


def run(
    plan: LaunchPlan, state: State, *, stdin: int = 0, stdout: Output = 1, stderr: Output = 2
) -> Outcome:
    """Runs the plan's command, in the container that ``state`` says runs, to its end.

    Raises LaunchError (125, 126, 127), and ConflictError if the container does not run.
    """
    entry = Entry(plan, state)
    namespaces.check_single_threaded()
    mask = process.block_signals(HANDLED)
    try:
        entry.prepare(stdin, stdout, stderr)
        entry.start()
        return entry.supervise()
    finally:
        entry.tear_down()
        process.restore_signals(mask)


def leave_running(plan: LaunchPlan, state: State) -> None:
    """As ``run``, but returns when the command runs; it reads nothing and its output is lost."""
    entry = Entry(plan.replace(interactive=False, terminal=False), state, is_left=True)
    namespaces.check_single_threaded()
    mask = process.block_signals(HANDLED)
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        entry.prepare(nothing, nothing, nothing)
        entry.start()
    finally:
        os.close(nothing)
        entry.tear_down()
        process.restore_signals(mask)


class Entry(Supervision):
    """An ``exec``, from its preparation to its end."""

    def __init__(
        self, plan: LaunchPlan, state: State, watch: Watch | None = None, *, is_left: bool = False
    ) -> None:
        super().__init__(plan, watch)
        self._state = state
        self._is_left = is_left
        """Whether the command outlives the launcher."""

    def prepare(self, stdin: int | None, stdout: Output, stderr: Output) -> None:
        """Everything that the child will need exists."""
        pidfd = None
        if self._state.pid is not None:
            pidfd = process.open_process(self._state.pid, self._state.pid_started)
        if pidfd is None:
            raise ConflictError("the container does not run", hint="start it first")
        self._target = self._keep(pidfd)
        self._prepare_streams(stdin, stdout, stderr)
        self._slave = -1
        if self._plan.terminal:
            master, slave = self._open_terminal()
            self._slave = self._for_child(slave)
            self._take_terminal(master)

    def _open_terminal(self) -> tuple[int, int]:
        """A pty of the container's devpts. Opened here, so that nothing has to leave the child,
        which nobody without privileges may trace."""
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
        root = os.open(f"/proc/{self._state.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        devpts = -1
        try:
            devpts = openat2(root, b"dev/pts", os.O_PATH | os.O_DIRECTORY, 0, resolve)
            return open_pty(devpts)
        finally:
            os.close(root)
            if devpts >= 0:
                os.close(devpts)

    def start(self) -> None:
        """The command's process exists, in the container, and is on its way to the command.

        One that is left running is there.
        """
        cgroup = Cgroup.of_paths(self._state.cgroups) if self._state.cgroups else None
        child = _Entrant(
            self._plan,
            target=self._target,
            cgroup=cgroup,
            maps_ids=os.geteuid() == 0 or _maps_many(self._state.pid or 0),
            go_fd=self._child_go,
            report_fd=self._child_report,
            stdio=self._streams,
            owned_stdio=tuple(self._childs),
            slave=self._slave,
            dies_with_parent=not self._is_left,
        )
        leaf = None if cgroup is None else cgroup.open_v2()
        try:
            guide, pidfd = namespaces.clone(0, cgroup_fd=leaf)
            if guide == 0:
                child.run_and_exit((self._go, self._report))
        finally:
            if leaf is not None:
                os.close(leaf)
        os.close(pidfd)
        self._drop(self._child_go, self._child_report, *self._childs)
        message = os.read(self._report, select.PIPE_BUF)
        os.waitpid(guide, 0)
        if self._is_left and not message:
            return
        if message.startswith(_CHILD):
            # It waits for our word, so that the pid is still its own.
            self._pid = int(message[1:])
            self._pidfd = self._keep(os.pidfd_open(self._pid))
            self._let_go()
            return
        if message:
            self._on_message(message)
        raise self._failure or LaunchError("the command did not start: its process was killed")

    @property
    def pidfd(self) -> int:
        """Readable once the command has ended; -1 before it is started."""
        return self._pidfd

    def exit_code(self) -> int:
        """Of a command that has ended, or 125 if it could not be started."""
        try:
            return self._finish().exit_code
        except LaunchError as error:
            return error.exit_code


class _Entrant(Child):
    """On the way into a container."""

    def __init__(
        self,
        plan: LaunchPlan,
        *,
        target: int,
        cgroup: Cgroup | None,
        maps_ids: bool,
        go_fd: int,
        report_fd: int,
        stdio: tuple[int, int, int],
        owned_stdio: tuple[int, ...],
        slave: int,
        dies_with_parent: bool,
    ) -> None:
        super().__init__(
            plan.replace(init=False),
            maps_ids=maps_ids,
            go_fd=go_fd,
            report_fd=report_fd,
            stdio=stdio,
            owned_stdio=owned_stdio,
            dies_with_parent=dies_with_parent,
        )
        self._target = target
        self._cgroup = cgroup
        self._slave = slave

    def _run(self) -> None:
        self._stage = "join the container"
        if self._cgroup is not None:
            self._cgroup.join_v1()
        process.leave_keyring()
        # From setns on the container's processes could trace this one, and find what it has open:
        # CVE-2016-9962.
        process.set_undumpable()
        process.close_all_but(
            {self.go_fd, self.report_fd, self._target, self._slave, *self.stdio} - {-1, 0, 1, 2}
        )
        namespaces.join(self._target, self._kinds())
        os.close(self._target)
        self._clone_again()
        self._stage = "find the user"
        os.setsid()
        os.umask(0)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        ids = resolve_user(root, self.plan.user)
        os.close(root)
        self._stage = "connect the standard streams"
        self._connect_stdio(ids)
        process.close_all_but((self.go_fd, self.report_fd))
        self._stage = "enter the working directory"
        self._enter_cwd()
        self._stage = "drop privileges"
        self._become(ids)
        self._exec(ids)

    def _kinds(self) -> int:
        kinds = namespaces.NEWNS | namespaces.NEWPID | namespaces.NEWUTS | namespaces.NEWIPC
        kinds |= namespaces.NEWCGROUP
        if self.plan.network != "host":
            kinds |= namespaces.NEWNET
        if os.geteuid() != 0:
            kinds |= namespaces.NEWUSER
        return kinds

    def _clone_again(self) -> None:
        """Only a new process is in the pid namespace that was joined."""
        if not self.dies_with_parent:
            parent = namespaces.clone(0)[0]  # which ends, in the namespace, as the command's parent
            if parent:
                os.waitpid(parent, 0)
                os._exit(0)
            if namespaces.clone(0)[0]:
                os._exit(0)
            return
        pid = namespaces.clone_sibling()
        if pid:
            os.write(self.report_fd, _CHILD + str(pid).encode())
            os._exit(0)
        self._bind_to_parent()
        self._wait()

    def _make_terminal(self, ids: Ids) -> int:
        os.fchown(self._slave, ids.uid, -1)
        take_as_controlling(self._slave)
        return self._slave


def _maps_many(pid: int) -> bool:
    """Whether more than one id exists in the process's user namespace."""
    with open(f"/proc/{pid}/uid_map") as lines:
        return sum(int(line.split()[2]) for line in lines) > 1
