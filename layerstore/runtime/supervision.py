"""A command of a container, from the clone of its process to its end: streams, signals, report.

The caller must have one thread: the child is a raw clone of this process. While a command runs,
this process blocks signals and reads them here, so that nothing interrupts the clean-up.
"""

from __future__ import annotations

import marshal
import os
import select
import time

from layerstore.kernel import process
from layerstore.kernel.process import SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGWINCH
from layerstore.kernel.values import Value
from layerstore.runtime import child
from layerstore.runtime.plan import LaunchError
from layerstore.runtime.terminal import Pump, RawMode, copy_window_size, set_window_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.runtime.plan import LaunchPlan

    Output = int | Callable[[bytes], object]

ENDING = frozenset((SIGHUP, SIGINT, SIGQUIT, SIGTERM))
FORWARDED = ENDING | {process.SIGUSR1, process.SIGUSR2}
HANDLED = FORWARDED | {SIGWINCH}
"""To be blocked before a Supervision is prepared."""
_VEOF = b"\x04"


class Outcome(Value):
    """How a container's command ended."""

    exit_code: int
    """The command's own; 128 and the signal's number if one ended it."""
    oom_killed: bool
    """Whether the kernel killed a process of the container for want of memory."""
    started_ns: int
    finished_ns: int


class Watch:
    """What a supervisor looks after besides the command; this one, nothing."""

    is_monitor = False
    window: tuple[int, int] | None = None
    """Rows and columns of a terminal that no terminal of the caller's shows."""

    @property
    def is_congested(self) -> bool:
        """Whether the command's output has to wait."""
        return False

    def wanted(self) -> dict[int, int]:
        """Descriptor → the events of poll(2) that ``step`` is called for."""
        return {}

    def timeout_ms(self) -> int | None:
        """``step`` is called by then at the latest; None: only for events."""
        return None

    def step(self, ready: dict[int, int]) -> None:
        """What is ready is done."""

    def on_signal(self, signum: int) -> None:
        """The supervisor got this signal, for the command."""

    def on_input(self, input_fd: int) -> None:
        """The command will read what is written to this descriptor."""

    def on_started(self, pid: int) -> None:
        """The command runs."""


class Supervision:
    """What a command's supervisor holds, from its preparation to its end."""

    is_first = False
    """Whether the command is PID 1 of its container."""
    noun = "command"

    def __init__(self, plan: LaunchPlan, watch: Watch | None = None) -> None:
        self._plan = plan
        self._watch = watch or Watch()
        self._fds: list[int] = []
        self._pumps: list[Pump] = []
        self._outputs: list[Pump] = []
        self._raw: RawMode | None = None
        self._pid = 0
        self._pidfd = -1
        self._master = -1
        self._failure: LaunchError | None = None
        self._killed_by = 0
        """The signal whose default action the supervisor took on behalf of the kernel."""
        self._has_started = False
        self._started_ns = 0

    # ---- preparation

    def _prepare_streams(self, stdin: int | None, stdout: Output, stderr: Output) -> None:
        """A terminal of the host is never handed in: its bytes are, through pipes.

        A ``stdin`` of None is held open for others, whom the watch knows, to write to.
        """
        self._signals = self._keep(process.signal_fd(HANDLED))
        self._child_go, self._go = self._pipe()
        self._report, self._child_report = self._pipe()
        self._childs: list[int] = []
        plan = self._plan
        self._stdin, self._stdout = stdin, stdout
        self._streams = (-1, -1, -1)
        if plan.terminal:
            return
        if not plan.interactive:
            stdin = self._keep(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        elif stdin is None or os.isatty(stdin):
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(write_end, False)
            if stdin is None:
                self._watch.on_input(self._keep(write_end))
            else:
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

    def _let_go(self) -> None:
        try:
            os.write(self._go, child.GO)
        except BrokenPipeError:  # the child has failed; its report says why
            pass

    # ---- supervision

    def supervise(self) -> Outcome:
        """Returns when the command has ended."""
        self._loop(lambda ended: ended)
        return self._finish()

    def _loop(self, is_enough: Callable[[bool], bool]) -> None:
        poll = select.poll()
        ended = False
        while not is_enough(ended):
            wanted = self._watch.wanted()
            wanted |= {self._pidfd: select.POLLIN, self._signals: select.POLLIN}
            if not self._has_started and self._failure is None:
                wanted[self._report] = select.POLLIN
            self._pumps = [pump for pump in self._pumps if pump.is_open]
            for pump in self._ready_pumps():
                fd, writes = pump.waits_for
                wanted[fd] = wanted.get(fd, 0) | (select.POLLOUT if writes else select.POLLIN)
            ready = poll_once(poll, wanted, self._watch.timeout_ms())
            self._step(ready)
            self._watch.step(ready)
            ended = self._pidfd in ready

    def _ready_pumps(self) -> list[Pump]:
        if self._outputs and self._watch.is_congested:
            return [pump for pump in self._pumps if pump not in self._outputs]
        return self._pumps

    def _step(self, ready: dict[int, int]) -> None:
        """What is ready is done."""
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

    def _on_signal(self, signum: int) -> None:
        if signum == SIGWINCH:
            if self._master >= 0 and self._stdin is not None:
                copy_window_size(self._stdin, self._master)
            return
        self._watch.on_signal(signum)
        if not self._has_started:
            if signum in ENDING:
                self._killed_by = signum
                process.send_signal(self._pidfd, SIGKILL)
            return
        # The kernel keeps from PID 1 of a namespace every signal that it doesn't handle. Programs
        # don't know that they are PID 1, and users expect Ctrl-C to end `sleep`.
        is_deaf = self.is_first and not self._plan.init
        if is_deaf and process.is_killed_by(self._pid, signum):
            self._killed_by = signum
            process.send_signal(self._pidfd, SIGKILL)
        else:
            process.send_signal(self._pidfd, signum)

    def _on_report(self) -> None:
        self._on_message(os.read(self._report, select.PIPE_BUF))

    def _on_message(self, message: bytes) -> None:
        if not message:
            self._has_started = True
            self._started_ns = time.time_ns()
            self._on_started()
            self._watch.on_started(self._pid)
        elif message.startswith(child.PTY):
            self._take_terminal(process.take_descriptor(self._pidfd, int(message[1:])))
            self._let_go()
        elif message.startswith(child.FAILED):
            stage, brief, hint, details, code = marshal.loads(message[1:])
            if code == 125:
                brief = f"the {self.noun} did not start: {stage}: {brief}"
            self._failure = LaunchError(brief, hint=hint, details=details, exit_code=code)
        else:
            code = int.from_bytes(message, "little")
            self._failure = child.exec_failure(self._plan.argv[0], code)

    def _on_started(self) -> None:
        """The command runs."""

    def _take_terminal(self, master: int) -> None:
        """The supervisor's end of the command's terminal is this descriptor, which it owns."""
        self._master = self._keep(master)
        os.set_blocking(self._master, False)
        self._outputs.append(Pump(self._master, self._stdout))
        self._pumps += self._outputs
        if self._stdin is None:
            set_window_size(self._master, self._watch.window)
            self._watch.on_input(self._master)
            return
        copy_window_size(self._stdin, self._master)
        self._raw = RawMode(self._stdin)
        if self._plan.interactive:
            self._pumps.append(Pump(self._stdin, self._master, at_end=_VEOF))

    # ---- end

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
        killed_by = self._killed_by or self._sent_by_others()
        if killed_by and code == -SIGKILL:
            code = -killed_by
        return Outcome(
            exit_code=code if code >= 0 else 128 - code,
            oom_killed=self._is_oom_killed(),
            started_ns=self._started_ns or finished,
            finished_ns=finished,
        )

    def _sent_by_others(self) -> int:
        """The signal that a SIGKILL of another process stands for."""
        return 0

    def _is_oom_killed(self) -> bool:
        return False

    def tear_down(self) -> None:
        """Nothing of the command is left."""
        try:
            self._end_child()
        finally:
            self._close_all()

    def _end_child(self) -> None:
        if self._pid:
            process.send_signal(self._pidfd, SIGKILL)
            os.waitpid(self._pid, 0)
        if self._raw is not None:
            self._raw.restore()

    def _close_all(self) -> None:
        for pump in self._pumps:
            pump.close()
        while self._fds:
            os.close(self._fds.pop())


def poll_once(
    poll: select.poll, wanted: dict[int, int], timeout_ms: int | None = None
) -> dict[int, int]:
    """Descriptor → events, of those that are ready."""
    for fd, events in wanted.items():
        poll.register(fd, events)
    try:
        return dict(poll.poll(timeout_ms))
    finally:
        for fd in wanted:
            poll.unregister(fd)
