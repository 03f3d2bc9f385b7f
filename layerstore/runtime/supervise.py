"""Launches a container, supervises its first command, and cleans up after it.

::

    launcher (holds the lock)
    └── PID 1 of the container: the command itself; killed when the launcher is
"""

from __future__ import annotations

import os
import time

from layerstore.errors import HostError, is_full
from layerstore.kernel import namespaces, process
from layerstore.kernel.cgroups import Cgroup
from layerstore.kernel.namespaces import plan_id_maps, write_id_maps
from layerstore.runtime import stage1, state
from layerstore.runtime.assemble import generated_files
from layerstore.runtime.state import State
from layerstore.runtime.supervision import HANDLED, Outcome, Supervision, Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.kernel.namespaces import IdMaps
    from layerstore.runtime.plan import LaunchPlan
    from layerstore.runtime.supervision import Output

__all__ = ["Launch", "Outcome", "run"]


def run(
    plan: LaunchPlan,
    *,
    stdin: int = 0,
    stdout: Output = 1,
    stderr: Output = 2,
    watch: Watch | None = None,
) -> Outcome:
    """Runs the plan to its end. A callable gets the stream's bytes while the command runs.

    Whatever happens, no mount, cgroup, process or descriptor of the container is left. Raises
    LaunchError (125, 126, 127) if the command did not start, HostError for limits that this host
    can't enforce, ConflictError if the container runs already.
    """
    namespaces.check_single_threaded()
    mask = process.block_signals(HANDLED)
    lock = -1
    try:
        os.makedirs(os.fspath(plan.state_dir), exist_ok=True)
        lock = state.acquire_lock(plan.state_dir)
        state.clear_locked(plan.state_dir)
        state.unmark_stopped(plan.state_dir)
        return launched(plan, stdin, stdout, stderr, watch)
    finally:
        if lock >= 0:
            os.close(lock)
        process.restore_signals(mask)


def launched(
    plan: LaunchPlan,
    stdin: int | None,
    stdout: Output,
    stderr: Output,
    watch: Watch | None = None,
    restarts: int = 0,
) -> Outcome:
    """As ``run``, for who holds the lock, has cleared what was left, and blocks the signals."""
    launch = Launch(plan, watch, restarts)
    try:
        launch.prepare(stdin, stdout, stderr)
        launch.start()
        return launch.supervise()
    finally:
        launch.tear_down()


class Launch(Supervision):
    """A launch, from its preparation to its end."""

    is_first = True
    noun = "container"

    def __init__(self, plan: LaunchPlan, watch: Watch | None = None, restarts: int = 0) -> None:
        super().__init__(plan, watch)
        self._rootless = os.geteuid() != 0
        self._state = State(restarts=restarts)
        self._cgroup: Cgroup | None = None

    # ---- preparation

    def prepare(self, stdin: int | None, stdout: Output, stderr: Output) -> None:
        """Everything that the child will need exists: cgroup, state, files, streams."""
        directory = self._plan.state_dir
        os.makedirs(os.fspath(directory) + "/" + stage1.MOUNT_POINT, exist_ok=True)
        self._plan_cgroup()
        self._stubs = self._keep(state.open_stubs(directory))
        self._prepare_streams(stdin, stdout, stderr)

    def _plan_cgroup(self) -> None:
        """Made now if the child is cloned into it; a plain user may have to do without.

        Cgroups are on record before they exist, so that the next command finds those of a launcher
        that was killed.
        """
        settings = self._plan.limits.settings()
        self._cgroup = Cgroup.planned(self._plan.container_id, settings)
        self._state = self._state.replace(
            boot_id=process.boot_id(),
            created_ns=time.time_ns(),
            cgroups=self._cgroup.paths,
            is_monitored=self._watch.is_monitor,
            has_init=self._plan.init,
            supervisor=os.getpid(),
            supervisor_started=process.start_time(os.getpid()),
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

    def record_health(self, health: str) -> None:
        """The state says so."""
        if self._state.health != health:
            self._record(self._state.replace(health=health))

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

    def _clone(self, flags: int, maps: IdMaps | None) -> None:
        child = stage1.FirstChild(
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

    def _on_started(self) -> None:
        self._record(self._state.replace(status="running", started_ns=self._started_ns))

    def _sent_by_others(self) -> int:
        return state.stop_mark(self._plan.state_dir) or 0

    def _is_oom_killed(self) -> bool:
        return self._cgroup is not None and self._cgroup.oom_kills() > 0

    def _finish(self) -> Outcome:
        outcome = super()._finish()
        self._state = self._state.replace(
            exit_code=outcome.exit_code, oom_killed=outcome.oom_killed
        )
        return outcome

    # ---- end

    def tear_down(self) -> None:
        """Nothing of the launch is left but its state, which says how it ended."""
        try:
            self._end_child()
            if self._cgroup is not None:
                self._cgroup.remove()
            if self._state.boot_id:
                self._record_end()
        finally:
            self._close_all()

    def _record_end(self) -> None:
        code = self._state.exit_code if self._failure is None else self._failure.exit_code
        end = self._state.replace(
            status="exited", pid=None, exit_code=code, finished_ns=time.time_ns(), cgroups=()
        )
        try:
            self._record(end)
        except OSError as error:
            # The command's own exit code is worth more; readers find the lock free and say exited.
            if not is_full(error):
                raise


def _write_in_place(path: bytes, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
