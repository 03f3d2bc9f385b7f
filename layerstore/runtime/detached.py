"""Starts monitors: the side of whoever wants a container to run on without it."""

from __future__ import annotations

import os
import sys

from layerstore.errors import HostError
from layerstore.runtime import control
from layerstore.runtime.attach import follow
from layerstore.runtime.control import FAILED, STARTED, Deframer
from layerstore.runtime.failure import parse_failure
from layerstore.runtime.plan import LaunchError
from layerstore.runtime.record import emit
from layerstore.runtime.terminal import window_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.runtime.supervision import Outcome
    from layerstore.runtime.upkeep import MonitorPlan

_CHANNEL_FD = 3
_PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# The monitor is nobody's child: the one that forks it is waited for here.
_PROGRAM = (
    "import os, sys; os.fork() and os._exit(0); sys.path.insert(0, sys.argv[1]); "
    "from layerstore.runtime.monitor import main; main()"
)


class Monitor:
    """A monitor that waits for its plan: its interpreter starts while the caller prepares it.

    ``close`` without a ``start`` ends it; after one, it leaves it alone.
    """

    def __init__(self) -> None:
        if not sys.executable:
            raise HostError(
                "this Python does not know its own program, which a monitor needs",
                hint="run layerstore with an ordinary python3",
            )
        self._channel, theirs = control.pair()
        try:
            self._starter = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _PROGRAM, _PACKAGES],
                {},
                file_actions=(
                    (os.POSIX_SPAWN_DUP2, theirs, _CHANNEL_FD),
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                    (os.POSIX_SPAWN_DUP2, 0, 2),
                ),
                setsid=True,
                setsigmask=(),
            )
        except BaseException:
            os.close(self._channel)
            raise
        finally:
            os.close(theirs)

    def start(self, plan: MonitorPlan) -> None:
        """Returns when the command runs. Raises LaunchError, HostError or ConflictError."""
        self.send(plan)
        for kind, payload in self.frames():
            if kind == STARTED:
                return
            if kind == FAILED:
                raise parse_failure(payload)
        raise LaunchError(
            "the container did not start: its monitor ended", hint="see whether it was killed"
        )

    def run_attached(
        self,
        plan: MonitorPlan,
        *,
        stdin: int | None,
        window: int,
        stdout: int,
        stderr: int,
        detach_keys: bytes,
    ) -> Outcome | None:
        """As ``start``, with the caller's streams until the container ends; None: detached.

        The command's terminal is at first as large as the terminal ``window``.
        """
        self.send(plan.replace(stays_attached=True, window=window_size(window)))
        channel, self._channel = self._channel, -1
        return follow(channel, plan.plan.state_dir, stdin, stdout, stderr, detach_keys)

    def send(self, plan: MonitorPlan) -> None:
        """The monitor has its plan; ``frames`` are its answers."""
        text = emit(plan).encode()
        try:
            while text:
                text = text[os.write(self._channel, text) :]
        except BrokenPipeError:  # it could not start; ``frames`` ends without a word
            pass
        control.end_of_words(self._channel)

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        """(kind, payload) of what the monitor says, until it hangs up."""
        deframer = Deframer()
        while chunk := os.read(self._channel, 1 << 16):
            yield from deframer.feed(chunk)

    def close(self) -> None:
        """The channel is closed, and what became the monitor's parent is reaped."""
        if self._channel >= 0:
            os.close(self._channel)
            self._channel = -1
        if self._starter:
            try:
                os.waitpid(self._starter, 0)
            except ChildProcessError:  # the caller ignores SIGCHLD
                pass
            self._starter = 0
