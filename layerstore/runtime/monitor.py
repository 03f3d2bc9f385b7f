"""Launches a container, and stays with it until it has ended for good: one process for each.

A fresh interpreter, so that a caller with threads or with much memory can start one, and so that
nothing of the caller stays in memory. The caller speaks first, through a socket: the MonitorPlan as
text, up to its end of file; the monitor answers with frames (``runtime.control``) and, unless the
caller stays attached, hangs up once the command runs.

While it waits it sleeps in poll(2), without a timeout unless a health check or a restart is due.
"""

from __future__ import annotations

import os
import select
import time

from layerstore.errors import LayerstoreError
from layerstore.kernel import process
from layerstore.runtime import control, failure, state
from layerstore.runtime.control import (
    ATTACH,
    ENDED,
    ERRORS,
    FAILED,
    HELLO,
    OUTPUT,
    STARTED,
    WAIT,
    frame,
)
from layerstore.runtime.logs import LogWriter
from layerstore.runtime.plan import LaunchError
from layerstore.runtime.record import emit, parse
from layerstore.runtime.supervise import Launch
from layerstore.runtime.supervision import ENDING, HANDLED, Outcome, Watch, poll_once
from layerstore.runtime.upkeep import MonitorPlan, next_delay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.runtime.health import Checker

CHANNEL_FD = 3
_CONGESTED = 1 << 20
_LINGER_S = 5.0


def main() -> None:
    """What the monitor's interpreter runs; ``runtime.detached`` starts it."""
    os.closerange(CHANNEL_FD + 1, 1 << 20)
    os.set_inheritable(CHANNEL_FD, False)
    os.chdir("/")
    os.umask(0o022)
    process.block_signals(HANDLED)
    text = b"".join(iter(lambda: os.read(CHANNEL_FD, 1 << 20), b""))
    if not text:  # the caller has changed its mind, or was killed
        return
    try:
        plan = parse(text.decode())
    except LayerstoreError:  # the caller was killed while it spoke
        return
    if isinstance(plan, MonitorPlan):
        os.set_blocking(CHANNEL_FD, False)
        process.set_name(b"layerstore-mon")
        monitor = _Monitor(plan)
        monitor.run()
        if plan.at_end and not monitor.is_first_start:
            process.restore_signals(())
            os.execv(plan.at_end[0], plan.at_end)


class _Client:
    """Somebody who gets a copy of the output."""

    def __init__(self, fd: int, wants: bytes = b"") -> None:
        self.fd = fd
        self.wants = wants
        """What it asked for: ``ATTACH``, ``WAIT``, or nothing yet."""
        self.pending = b""

    def send(self, message: bytes) -> bool:
        """False if the client is gone. What it does not take now waits."""
        self.pending += message
        try:
            self.pending = self.pending[os.write(self.fd, self.pending) :]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


class _Monitor(Watch):
    is_monitor = True

    def __init__(self, plan: MonitorPlan) -> None:
        self._plan = plan
        self._directory = plan.plan.state_dir
        self._clients: dict[int, _Client] = {}
        self._listener = -1
        self._hello = b""
        self.is_first_start = True
        self._is_ending = False
        self._launch: Launch | None = None
        self._checker: Checker | None = None
        if plan.window is not None:
            rows, columns = plan.window
            self.window = (rows, columns)

    # ---- the whole life

    def run(self) -> None:
        """Returns when the container has ended for good."""
        caller = self._clients[CHANNEL_FD] = _Client(CHANNEL_FD, ATTACH)
        try:
            lock = state.acquire_lock(self._directory)
        except (LayerstoreError, OSError) as error:
            caller.send(frame(FAILED, failure.emit_failure(error)))
            return
        try:
            state.clear_locked(self._directory)
            state.unmark_stopped(self._directory)
            self._listener = control.listen(self._directory)
            os.makedirs(self._plan.log_dir, 0o700, exist_ok=True)
            upkeep = self._plan.upkeep
            self._log = LogWriter(
                self._plan.log_dir, max_size=upkeep.log_size, count=upkeep.log_files
            )
            self._signals = process.signal_fd(ENDING)
            self._tell(frame(ENDED, emit(self._live()).encode()), all_of_them=True)
        except (LayerstoreError, OSError) as error:
            if self.is_first_start:
                caller.send(frame(FAILED, failure.emit_failure(error)))
            else:
                self._log.write(b"stderr", b"layerstore: %s\n" % str(error).encode())
        finally:
            control.remove(self._directory)
            os.close(lock)
            self._send_rest()

    def _live(self) -> Outcome:
        delay_s, restarts = 0.0, 0
        while True:
            started = time.monotonic()
            outcome = self._launch_once(restarts)
            restart = self._plan.upkeep.restart
            if self._must_end() or not restart.wants(outcome.exit_code, restarts):
                return outcome
            delay_s = next_delay(delay_s, time.monotonic() - started)
            restarts += 1
            self._record_restarting(restarts)
            self._sleep(delay_s)
            if self._must_end():
                self._record_ended()
                return outcome

    def _launch_once(self, restarts: int) -> Outcome:
        plan = self._plan.plan
        launch = self._launch = Launch(plan, self, restarts)
        try:
            launch.prepare(None, self._on_output, self._on_errors)
            launch.start()
            return launch.supervise()
        except LaunchError as error:
            if self.is_first_start:
                raise
            self._log.write(b"stderr", b"layerstore: %s\n" % error.brief.encode())
            now = time.time_ns()
            return Outcome(
                exit_code=error.exit_code, oom_killed=False, started_ns=now, finished_ns=now
            )
        finally:
            if self._checker is not None:
                self._checker.close()
                self._checker = None
            self._launch = None
            launch.tear_down()

    def _must_end(self) -> bool:
        return self._is_ending or state.stop_mark(self._directory) is not None

    def _record_restarting(self, restarts: int) -> None:
        now = state.last_recorded(self._directory)
        state.write_state(self._directory, now.replace(status="restarting", restarts=restarts))

    def _record_ended(self) -> None:
        now = state.last_recorded(self._directory)
        state.write_state(self._directory, now.replace(status="exited"))

    def _sleep(self, seconds: float) -> None:
        """Until then, or until somebody wants the container to end."""
        poll = select.poll()
        deadline = time.monotonic() + seconds
        while not self._must_end():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            wanted = {self._signals: select.POLLIN} | self._wanted_of_clients()
            ready = poll_once(poll, wanted, round(left * 1000) + 1)
            self._is_ending = bool(process.read_signals(self._signals))
            self._serve(ready)

    # ---- what Supervision asks

    @property
    def is_congested(self) -> bool:
        return any(len(client.pending) > _CONGESTED for client in self._clients.values())

    def wanted(self) -> dict[int, int]:
        wanted = self._wanted_of_clients()
        if self._checker is not None:
            wanted |= self._checker.wanted()
        return wanted

    def timeout_ms(self) -> int | None:
        return None if self._checker is None else self._checker.timeout_ms()

    def step(self, ready: dict[int, int]) -> None:
        self._serve(ready)
        if self._checker is not None:
            self._checker.step(ready)
            if self._launch is not None:
                self._launch.record_health(self._checker.health)

    def on_signal(self, signum: int) -> None:
        if signum in ENDING:
            self._is_ending = True

    def on_input(self, input_fd: int) -> None:
        self._hello = frame(HELLO, b"%d %d %d" % (os.getpid(), input_fd, self._plan.plan.terminal))
        if self._plan.stays_attached or not self.is_first_start:
            self._tell(self._hello)

    def on_started(self, pid: int) -> None:
        if self.is_first_start:
            self.is_first_start = False
            self._tell(frame(STARTED, b"%d" % pid))
            if not self._plan.stays_attached:
                self._drop(CHANNEL_FD)
        check = self._plan.upkeep.health
        if check is not None:
            from layerstore.runtime.health import Checker  # most monitors check nothing

            self._checker = Checker(check, self._plan.plan)

    # ---- output

    def _on_output(self, chunk: bytes) -> None:
        self._log.write(b"stdout", chunk)
        if self._clients:
            self._tell(frame(OUTPUT, chunk))

    def _on_errors(self, chunk: bytes) -> None:
        self._log.write(b"stderr", chunk)
        if self._clients:
            self._tell(frame(ERRORS, chunk))

    # ---- clients

    def _wanted_of_clients(self) -> dict[int, int]:
        wanted = {self._listener: select.POLLIN}
        for fd, client in self._clients.items():
            wanted[fd] = select.POLLOUT if client.pending else 0
            if not client.wants:
                wanted[fd] |= select.POLLIN
        return wanted

    def _serve(self, ready: dict[int, int]) -> None:
        if self._listener in ready:
            fd = control.accept(self._listener)
            if fd is not None:
                self._clients[fd] = _Client(fd)
        for fd in [fd for fd in self._clients if fd in ready]:
            if ready[fd] & (select.POLLHUP | select.POLLERR):
                self._drop(fd)
            elif ready[fd] & select.POLLIN:
                self._on_question(fd)
            elif ready[fd] & select.POLLOUT:
                self._send(fd, b"")

    def _on_question(self, fd: int) -> None:
        try:
            self._clients[fd].wants = os.read(fd, 1)
        except OSError:
            pass
        if self._clients[fd].wants == ATTACH:
            self._send(fd, self._hello or frame(HELLO, b"%d -1 0" % os.getpid()))
        elif self._clients[fd].wants != WAIT:
            self._drop(fd)

    def _tell(self, message: bytes, *, all_of_them: bool = False) -> None:
        """Those who are attached get the message."""
        for fd, client in list(self._clients.items()):
            if all_of_them or client.wants == ATTACH:
                self._send(fd, message)

    def _send(self, fd: int, message: bytes) -> None:
        if not self._clients[fd].send(message):
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        del self._clients[fd]
        os.close(fd)

    def _send_rest(self) -> None:
        """Every client has what it is still owed, unless it takes nothing for 5 seconds."""
        poll = select.poll()
        while waiting := {fd: select.POLLOUT for fd, c in self._clients.items() if c.pending}:
            ready = poll_once(poll, waiting, round(_LINGER_S * 1000))
            if not ready:
                break
            for fd in ready:
                self._send(fd, b"")
        for fd in list(self._clients):
            self._drop(fd)
