"""Asks a container, again and again, whether it does its work."""

from __future__ import annotations

import os
import select
import time

from layerstore.errors import LayerstoreError
from layerstore.kernel.cgroups import Cgroup
from layerstore.runtime import state
from layerstore.runtime.enter import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.runtime.plan import LaunchPlan
    from layerstore.runtime.upkeep import HealthCheck

_EXIT_HEALTHY = 0


class Checker:
    """The health checks of one start of a container, for who polls on their behalf.

    At most one check runs at a time; the next one begins an interval after it has ended.
    """

    def __init__(self, check: HealthCheck, plan: LaunchPlan) -> None:
        self.health = "starting"
        self._check = check
        self._plan = plan.replace(argv=check.argv, interactive=False, terminal=False)
        now = time.monotonic()
        self._counts_from = now + check.start_period_s
        self._due = now + check.interval_s
        self._failures = 0
        self._entry: Entry | None = None

    def wanted(self) -> dict[int, int]:
        """As Watch's."""
        return {} if self._entry is None else {self._entry.pidfd: select.POLLIN}

    def timeout_ms(self) -> int:
        """When a check begins, or has taken too long."""
        return max(0, round((self._due - time.monotonic()) * 1000) + 1)

    def step(self, ready: dict[int, int]) -> None:
        """As Watch's."""
        now = time.monotonic()
        if self._entry is not None:
            if self._entry.pidfd in ready:
                self._end(self._entry.exit_code() == _EXIT_HEALTHY)
            elif now >= self._due:
                self._end(False)
        elif now >= self._due:
            self._begin()

    def _begin(self) -> None:
        now = state.last_recorded(self._plan.state_dir)
        if now.cgroups and Cgroup.of_paths(now.cgroups).is_frozen:
            self._due = time.monotonic() + self._check.interval_s
            return
        self._due = time.monotonic() + self._check.timeout_s
        nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        entry = self._entry = Entry(self._plan, now)
        try:
            entry.prepare(nothing, nothing, nothing)
            entry.start()
        except (LayerstoreError, OSError):
            self._end(False)
        finally:
            os.close(nothing)

    def _end(self, is_healthy: bool) -> None:
        self.close()
        now = time.monotonic()
        self._due = now + self._check.interval_s
        if is_healthy:
            self._failures, self._counts_from = 0, now
            self.health = "healthy"
        elif now >= self._counts_from:
            self._failures += 1
            if self._failures >= self._check.retries:
                self.health = "unhealthy"

    def close(self) -> None:
        """No check runs."""
        if self._entry is not None:
            self._entry.tear_down()
            self._entry = None
