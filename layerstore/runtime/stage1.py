"""The child's way from a clone of the launcher to the first command of a new container.

One stage after the other, in order, as ``runtime.child`` says.
"""

from __future__ import annotations

import os

from layerstore.kernel import mounts, namespaces, process
from layerstore.runtime import terminal
from layerstore.runtime.assemble import Assembly
from layerstore.runtime.child import PTY, Child
from layerstore.runtime.targets import Root
from layerstore.runtime.users import resolve_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.kernel.cgroups import Cgroup
    from layerstore.runtime.plan import LaunchPlan
    from layerstore.runtime.users import Ids

MOUNT_POINT = "root"
"""In the state directory: what the root covers until it is the root. Empty on the host."""


class FirstChild(Child):
    """PID 1 to be: it furnishes its root before it enters it."""

    def __init__(
        self,
        plan: LaunchPlan,
        *,
        cgroup: Cgroup | None,
        rootless: bool,
        maps_ids: bool,
        go_fd: int,
        report_fd: int,
        stubs_fd: int,
        stdio: tuple[int, int, int],
        owned_stdio: tuple[int, ...],
    ) -> None:
        super().__init__(
            plan,
            maps_ids=maps_ids,
            go_fd=go_fd,
            report_fd=report_fd,
            stdio=stdio,
            owned_stdio=owned_stdio,
        )
        self._cgroup = cgroup
        """Made by the time of the second word on the pipe, or of the clone."""
        self._rootless = rootless
        self._stubs_fd = stubs_fd

    def _run(self) -> None:
        plan = self.plan
        if self._rootless:
            self._wait()  # until the ids are mapped
        self._stage = "leave the host"
        os.setsid()
        process.leave_keyring()
        os.umask(0)
        namespaces.set_hostname(plan.hostname)
        if plan.network == "none":
            namespaces.loopback_up()
        self._stage = "mount the root"
        mounts.make_private()
        top = os.fspath(plan.state_dir) + "/" + MOUNT_POINT
        mounts.mount_overlay(plan.root, top, attributes=mounts.NODEV)
        root_fd = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        root = Root(root_fd, self._stubs_fd)
        self._stage = "find the user"
        ids = resolve_user(root_fd, plan.user)
        self._stage = "mount into the root"
        self._assembly = assembly = Assembly(
            plan, root, rootless=self._rootless, maps_tty=not self._rootless or self.maps_ids
        )
        assembly.mount_kernel_views()
        self._wait()  # until the cgroup and the generated files exist
        self._enter_cgroup()
        assembly.mount_cgroups(self._cgroup.hierarchies if self._cgroup else ())
        assembly.mount_wanted()
        os.close(root.find_or_make(plan.cwd, directory=True, is_stub=False))
        if plan.read_only:
            assembly.forbid_writing()
        self._stage = "connect the standard streams"
        self._connect_stdio(ids)
        self._stage = "enter the root"
        process.set_undumpable()
        mounts.pivot_into(root_fd)
        process.close_all_but((self.go_fd, self.report_fd))
        self._enter_cwd()
        self._stage = "drop privileges"
        self._become(ids)
        self._exec(ids)

    def _enter_cgroup(self) -> None:
        """A member of its cgroup, which is all it sees of them."""
        if self._cgroup is not None:
            self._cgroup.join_v1()
        namespaces.unshare(namespaces.NEWCGROUP)

    def _make_terminal(self, ids: Ids) -> int:
        master, slave = terminal.open_pty(self._assembly.devpts_fd)
        os.fchown(slave, ids.uid, -1)
        self._assembly.attach_console(slave)
        os.write(self.report_fd, PTY + str(master).encode())
        self._wait()  # until the launcher has taken the master
        os.close(master)
        terminal.take_as_controlling(slave)
        return slave
