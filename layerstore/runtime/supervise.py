"""Runs a container in the foreground: starts it, passes on what belongs to it, cleans up after it.

The caller must have one thread: the child is a raw clone of this process. While a container runs,
its process blocks signals and reads them here, so that nothing interrupts the clean-up::

    launcher (holds the lock)
    └── PID 1 of the container: the command itself; killed when the launcher is
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import time

from layerstore.errors import HostError
from layerstore.kernel import namespaces, process
from layerstore.kernel.cgroups import Cgroup
from layerstore.kernel.namespaces import plan_id_maps, write_id_maps
from layerstore.kernel.process import SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGWINCH
from layerstore.kernel.values import Value
from layerstore.runtime import stage1, state
from layerstore.runtime.assemble import generated_files
from layerstore.runtime.plan import LaunchError
from layerstore.runtime.state import State
from layerstore.runtime.terminal import Pump, RawMode, copy_window_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.kernel.namespaces import IdMaps
    from layerstore.runtime.plan import LaunchPlan

_ENDING = frozenset((SIGHUP, SIGINT, SIGQUIT, SIGTERM))
_FORWARDED = _ENDING | {process.SIGUSR1, process.SIGUSR2}
_VEOF = b"\x04"


class Outcome(Value):
    """How a container's command ended."""

    exit_code: int
    """The command's own; 128 and the signal's number if one ended it."""
    oom_killed: bool
    """Whether the kernel killed a process of the container for want of memory."""
    started_ns: int
    finished_ns: int


def run(
    plan: LaunchPlan,
    *,
    stdin: int = 0,
    stdout: int | Callable[[bytes], object] = 1,
    stderr: int | Callable[[bytes], object] = 2,
) -> Outcome:
    """Runs the plan to its end. A callable gets the stream's bytes while the command runs.

    Whatever happens, no mount, cgroup, process or descriptor of the container is left. Raises
    LaunchError (125, 126, 127) if the command did not start, HostError for limits that this host
    can't enforce, ConflictError if the container runs already.
    """
    namespaces.check_single_threaded()
    mask = process.block_signals(_FORWARDED | {SIGWINCH})
    launch = _Launch(plan)
    try:
        launch.prepare(stdin, stdout, stderr)
        launch.start()
        return launch.supervise()
    finally:
        launch.tear_down()
        process.restore_signals(mask)


class _Launch:
    """What a launch holds, from its preparation to its end."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._rootless = os.geteuid() != 0
        self._state = State()
        self._cgroup: Cgroup | None = None
        self._fds: list[int] = []
        self._pumps: list[Pump] = []
        self._outputs: list[Pump] = []
        self._raw: RawMode | None = None
        self._pid = 0
        self._pidfd = -1
        self._master = -1
        self._failure: LaunchError | None = None
        self._killed_by = 0
        """The signal whose default action the launcher took on behalf of the kernel."""
        self._has_started = False

    # ---- preparation

    def prepare(
        self,
        stdin: int,
        stdout: int | Callable[[bytes], object],
        stderr: int | Callable[[bytes], object],
    ) -> None:
        """Everything that the child will need exists: lock, cgroup, state, files, streams."""
        directory = self._plan.state_dir
        os.makedirs(os.fspath(directory) + "/" + stage1.MOUNT_POINT, exist_ok=True)
        self._keep(state.acquire_lock(directory))
        state.clear_locked(directory)
        self._signals = self._keep(process.signal_fd(_FORWARDED | {SIGWINCH}))
        self._plan_cgroup()
        self._stubs = self._keep(state.open_stubs(directory))
        self._child_go, self._go = self._pipe()
        self._report, self._child_report = self._pipe()
        self._prepare_streams(stdin, stdout, stderr)

    def _plan_cgroup(self) -> None:
        """Made now if the child is cloned into it; a plain user may have to do without.

        Cgroups are on record before they exist, so that the next command finds those of a launcher
        that was killed.
        """
        settings = self._plan.limits.settings()
        self._cgroup = Cgroup.planned(self._plan.container_id, settings)
        self._state = State(
            boot_id=process.boot_id(), created_ns=time.time_ns(), cgroups=self._cgroup.paths
        )
        if not (self._rootless or self._cgroup.is_v2):
            return
        self._record(self._state)
        try:
            self._cgroup.make(settings)
        except HostError:
            if settings.controllers() or not self._rootless:
                raise
            self._cgroup = None
            self._state = self._state.replace(cgroups=())

    def _record(self, now: State) -> None:
        self._state = now
        state.write_state(self._plan.state_dir, now)

    def _prepare_streams(
        self,
        stdin: int,
        stdout: int | Callable[[bytes], object],
        stderr: int | Callable[[bytes], object],
    ) -> None:
        """A terminal of the host is never handed in: its bytes are, through pipes."""
        self._childs: list[int] = []
        plan = self._plan
        if plan.terminal:
            self._stdin, self._stdout = stdin, stdout
            self._streams = (-1, -1, -1)
            return
        if not plan.interactive:
            stdin = self._keep(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        elif os.isatty(stdin):
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(write_end, False)
            self._pumps.append(Pump(stdin, write_end, owned=write_end))
            stdin = self._for_child(read_end)
        streams = [stdin]
        for target in (stdout, stderr):
            if not isinstance(target, int) or os.isatty(target):
                read_end, write_end = os.pipe2(os.O_CLOEXEC)
                self._outputs.append(Pump(read_end, target, owned=read_end))
                target = self._for_child(write_end)
            streams.append(target)
        self._streams = (streams[0], streams[1], streams[2])
        self._pumps += self._outputs

    def _for_child(self, fd: int) -> int:
        self._childs.append(fd)
        return self._keep(fd)

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _pipe(self) -> tuple[int, int]:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        return self._keep(read_end), self._keep(write_end)

    def _drop(self, *fds: int) -> None:
        for fd in fds:
            self._fds.remove(fd)
            os.close(fd)

    # ---- start

    def start(self) -> None:
        """The child exists, in its namespaces and cgroup, and is on its way to the command."""
        flags = namespaces.NEWNS | namespaces.NEWPID | namespaces.NEWUTS | namespaces.NEWIPC
        if self._plan.network == "none":
            flags |= namespaces.NEWNET
        maps = plan_id_maps(os.geteuid(), os.getegid()) if self._rootless else None
        if maps is not None:
            flags |= namespaces.NEWUSER
        self._clone(flags, maps)
        if maps is not None:
            write_id_maps(self._pid, maps)
            self._let_go()
        # The child mounts its root meanwhile.
        self._state = self._state.replace(pid=self._pid, pid_started=process.start_time(self._pid))
        if self._cgroup is not None and not self._cgroup.is_made:
            self._record(self._state)
            self._cgroup.make(self._plan.limits.settings())
        for name, content in generated_files(self._plan).items():
            path = os.fsencode(self._plan.state_dir) + b"/" + name
            _write_in_place(path, content)
        self._let_go()

    def _let_go(self) -> None:
        try:  # noqa: SIM105 - contextlib is slow to import
            os.write(self._go, stage1.GO)
        except BrokenPipeError:  # the child has failed; its report says why
            pass

    def _clone(self, flags: int, maps: IdMaps | None) -> None:
        child = stage1.Child(
            self._plan,
            cgroup=self._cgroup,
            rootless=self._rootless,
            maps_ids=maps is None or maps.by_helper,
            go_fd=self._child_go,
            report_fd=self._child_report,
            stubs_fd=self._stubs,
            stdio=self._streams,
            owned_stdio=tuple(self._childs),
        )
        leaf = None if self._cgroup is None else self._cgroup.open_v2()
        try:
            pid, self._pidfd = namespaces.clone(flags, cgroup_fd=leaf)
            if pid == 0:
                child.run_and_exit((self._go, self._report))
        except OSError as error:
            raise namespaces.explain_refusal(error) from error
        finally:
            if leaf is not None:
                os.close(leaf)
        self._pid = pid
        self._keep(self._pidfd)
        self._drop(self._child_go, self._child_report, *self._childs)

    # ---- supervision

    def supervise(self) -> Outcome:
        """Returns when the command has ended."""
        poll = select.poll()
        ended = False
        while not ended:
            wanted = {self._pidfd: select.POLLIN, self._signals: select.POLLIN}
            if not self._has_started and self._failure is None:
                wanted[self._report] = select.POLLIN
            self._pumps = [pump for pump in self._pumps if pump.is_open]
            for pump in self._pumps:
                fd, writes = pump.waits_for
                wanted[fd] = wanted.get(fd, 0) | (select.POLLOUT if writes else select.POLLIN)
            ended = self._step(_poll(poll, wanted))
        return self._finish()

    def _step(self, ready: dict[int, int]) -> bool:
        """What is ready is done; whether the command has ended."""
        # The report first: a command may have started, and been sent a signal, since the last look.
        if self._report in ready:
            self._on_report()
        if self._signals in ready:
            for signum in process.read_signals(self._signals):
                self._on_signal(signum)
        for pump in self._pumps:
            fd, writes = pump.waits_for
            events = ready.get(fd, 0)
            if events & (~select.POLLIN if writes else ~select.POLLOUT):
                pump.step()
        return self._pidfd in ready

    def _on_signal(self, signum: int) -> None:
        if signum == SIGWINCH:
            if self._master >= 0:
                copy_window_size(self._stdin, self._master)
            return
        ends = signum in _ENDING
        if not self._has_started:
            if ends:
                self._killed_by = signum
                process.send_signal(self._pidfd, SIGKILL)
            return
        # The kernel keeps from PID 1 of a namespace every signal that it doesn't handle. Programs
        # don't know that they are PID 1, and users expect Ctrl-C to end `sleep`.
        if process.is_killed_by(self._pid, signum):
            self._killed_by = signum
            process.send_signal(self._pidfd, SIGKILL)
        else:
            process.send_signal(self._pidfd, signum)

    def _on_report(self) -> None:
        message = os.read(self._report, select.PIPE_BUF)
        if not message:
            self._on_started()
        elif message.startswith(stage1.PTY):
            self._take_terminal(int(message[1:]))
            self._let_go()
        elif message.startswith(stage1.FAILED):
            stage, brief, hint, details, code = marshal.loads(message[1:])
            if code == 125:
                brief = f"the container did not start: {stage}: {brief}"
            self._failure = LaunchError(brief, hint=hint, details=details, exit_code=code)
        else:
            code = int.from_bytes(message, "little")
            self._failure = stage1.exec_failure(self._plan.argv[0], code)

    def _on_started(self) -> None:
        self._has_started = True
        self._record(self._state.replace(status="running", started_ns=time.time_ns()))

    def _take_terminal(self, number: int) -> None:
        self._master = self._keep(process.take_descriptor(self._pidfd, number))
        os.set_blocking(self._master, False)
        copy_window_size(self._stdin, self._master)
        self._raw = RawMode(self._stdin)
        self._outputs.append(Pump(self._master, self._stdout))
        self._pumps += self._outputs
        if self._plan.interactive:
            self._pumps.append(Pump(self._stdin, self._master, at_end=_VEOF))

    def _finish(self) -> Outcome:
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        finished = time.time_ns()
        for pump in self._outputs:
            pump.drain()
        code = os.waitstatus_to_exitcode(status)
        while not self._has_started and self._failure is None:
            self._on_report()  # it may have ended between two looks of the same poll
        if self._failure is not None:
            raise self._failure
        if self._killed_by and code == -SIGKILL:
            code = -self._killed_by
        oom_killed = self._cgroup is not None and self._cgroup.oom_kills() > 0
        self._state = self._state.replace(
            exit_code=code if code >= 0 else 128 - code, oom_killed=oom_killed
        )
        return Outcome(
            exit_code=code if code >= 0 else 128 - code,
            oom_killed=oom_killed,
            started_ns=self._state.started_ns or finished,
            finished_ns=finished,
        )

    # ---- end

    def tear_down(self) -> None:
        """Nothing of the launch is left but its state, which says how it ended."""
        try:
            if self._pid:
                process.send_signal(self._pidfd, SIGKILL)
                os.waitpid(self._pid, 0)
            if self._raw is not None:
                self._raw.restore()
            if self._cgroup is not None:
                self._cgroup.remove()
            if self._state.boot_id:
                self._record_end()
        finally:
            for pump in self._pumps:
                pump.close()
            while self._fds:
                os.close(self._fds.pop())

    def _record_end(self) -> None:
        code = self._state.exit_code if self._failure is None else self._failure.exit_code
        end = self._state.replace(
            status="exited", pid=None, exit_code=code, finished_ns=time.time_ns(), cgroups=()
        )
        try:
            self._record(end)
        except OSError as error:
            # The command's own exit code is worth more; readers find the lock free and say exited.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise


def _poll(
    poll: select.poll, wanted: dict[int, int], timeout_ms: int | None = None
) -> dict[int, int]:
    for fd, events in wanted.items():
        poll.register(fd, events)
    try:
        return dict(poll.poll(timeout_ms))
    finally:
        for fd in wanted:
            poll.unregister(fd)


def _write_in_place(path: bytes, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
