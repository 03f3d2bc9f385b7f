"""A container's root as a descriptor, for who reads and writes its files from outside."""

from __future__ import annotations

import os

from layerstore.errors import HostError, LayerstoreError
from layerstore.kernel import mounts, namespaces, process
from layerstore.kernel.namespaces import plan_id_maps, write_id_maps
from layerstore.runtime import state
from layerstore.runtime.stage1 import MOUNT_POINT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from layerstore.kernel.mounts import OverlayMount
    from layerstore.runtime.state import StrPath


def running_root(pid: int, started: int | None) -> int | None:
    """The descriptor of what the process sees as its root, with all its mounts; None: it ended."""
    pidfd = process.open_process(pid, started)
    if pidfd is None:
        return None
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    finally:
        os.close(pidfd)
    if process.start_time(pid) == started:
        return root
    os.close(root)
    return None


class StoppedRoot:
    """The descriptor of a stopped container's root, mounted where nobody else sees it.

    Its lock is held meanwhile, so that nobody starts it. Raises ConflictError while it runs.
    """

    def __init__(self, state_dir: StrPath, root: OverlayMount) -> None:
        self._state_dir = state_dir
        self._root = root
        self._fds: list[int] = []
        self._pid = 0

    def __enter__(self) -> int:
        try:
            return self._open()
        except BaseException:
            self._close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _open(self) -> int:
        namespaces.check_single_threaded()
        self._fds.append(state.acquire_lock(self._state_dir))
        os.makedirs(os.fspath(self._state_dir) + "/" + MOUNT_POINT, exist_ok=True)
        answer, child_answer = os.pipe2(os.O_CLOEXEC)
        child_go, go = os.pipe2(os.O_CLOEXEC)
        self._fds += [answer, go]
        rootless = os.geteuid() != 0
        flags = namespaces.NEWNS | (namespaces.NEWUSER if rootless else 0)
        try:
            self._pid, pidfd = namespaces.clone(flags)
            if self._pid == 0:
                os.close(go)
                self._hold(child_go, child_answer)
        except OSError as error:
            raise namespaces.explain_refusal(error) from error
        finally:
            os.close(child_answer)
            os.close(child_go)
        self._fds.append(pidfd)
        if rootless:
            write_id_maps(self._pid, plan_id_maps(os.geteuid(), os.getegid()))
        os.write(go, b"g")
        word = os.read(answer, 4096)
        if not word.isdigit():
            raise HostError(f"the container's root can't be mounted: {word.decode()}")
        root = process.take_descriptor(pidfd, int(word))
        self._fds.append(root)
        return root

    def _hold(self, go: int, answer: int) -> None:
        """Never returns: the child keeps the mount until its parent lets go."""
        try:
            process.die_with_parent()
            os.read(go, 1)
            mounts.make_private()
            top = os.fspath(self._state_dir) + "/" + MOUNT_POINT
            mounts.mount_overlay(self._root, top, attributes=mounts.NODEV)
            root = os.open(top, os.O_PATH | os.O_DIRECTORY)
            os.write(answer, str(root).encode())
            os.read(go, 1)
        except (LayerstoreError, OSError) as error:
            os.write(answer, str(error).encode()[:4096])
        finally:
            os._exit(0)

    def _close(self) -> None:
        while len(self._fds) > 1:
            os.close(self._fds.pop())
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0
        if self._fds:  # the lock, last
            os.close(self._fds.pop())
