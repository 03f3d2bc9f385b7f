"""Signals for a container's first command, from outside."""

from __future__ import annotations

import os

from layerstore.errors import ConflictError, HostError
from layerstore.kernel import process
from layerstore.kernel.cgroups import Cgroup
from layerstore.kernel.process import SIGKILL
from layerstore.runtime.state import await_free, mark_stopped, read_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.runtime.state import State, StrPath

END_PATIENCE_S = 20.0


def deliver(state_dir: StrPath, state: State, signum: int, *, ends: bool = False) -> int:
    """The container's first command got the signal; a pidfd of it, the caller's.

    What would end any other process also ends this one, though it is PID 1: the kernel keeps from
    it every signal that it doesn't handle. With ``ends`` the container is not restarted after it.
    Raises ConflictError if the container does not run.
    """
    pidfd = None if state.pid is None else process.open_process(state.pid, state.pid_started)
    if pidfd is None:
        raise ConflictError("the container does not run")
    is_fatal = signum == SIGKILL or (
        signum in _ENDING and not state.has_init and process.is_killed_by(state.pid or 0, signum)
    )
    if ends or is_fatal:
        mark_stopped(state_dir, signum if is_fatal else 0)
    process.send_signal(pidfd, SIGKILL if is_fatal else signum)
    if ends or is_fatal:
        thaw(state)  # what stands still can neither handle a signal nor, on v1, die
    return pidfd


def end(state_dir: StrPath, signum: int, timeout_s: float) -> State:
    """The container has ended, and is not restarted: by the signal, or by force after a while.

    Its state then. One that does not run stays as it is. Raises HostError if it can't be ended.
    """
    state = read_state(state_dir)
    try:
        pidfd = deliver(state_dir, state, signum, ends=True)
    except ConflictError:
        if not state.is_monitored or await_free(state_dir, 0):
            return read_state(state_dir)
        mark_stopped(state_dir)
        _wake(state)  # it may be asleep until the next restart
    else:
        try:
            if not process.has_ended(pidfd, timeout_s):
                mark_stopped(state_dir, SIGKILL)
                process.send_signal(pidfd, SIGKILL)
                thaw(state)
        finally:
            os.close(pidfd)
    if not await_free(state_dir, END_PATIENCE_S):
        raise HostError(
            f"the container did not end within {END_PATIENCE_S:g} seconds of being killed",
            hint="see whether one of its processes is in state D: layerstore top",
        )
    return read_state(state_dir)


def _wake(state: State) -> None:
    """The monitor, whose command does not run now, takes it as a wish to end."""
    if state.supervisor is None:
        return
    pidfd = process.open_process(state.supervisor, state.supervisor_started)
    if pidfd is not None:
        process.send_signal(pidfd, process.SIGTERM)
        os.close(pidfd)


# All whose default action is to end the process.
_ENDING = frozenset(range(1, 65)) - {17, 18, 19, 20, 21, 22, 23, 28}


def thaw(state: State) -> None:
    """The container's processes go on, if they stood still."""
    cgroup = Cgroup.of_paths(state.cgroups)
    if cgroup.is_frozen:
        cgroup.thaw()
