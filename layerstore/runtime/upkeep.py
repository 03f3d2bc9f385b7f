"""How a container is kept once it is launched, decided: restarts, logs, signals, health checks."""

from __future__ import annotations

from layerstore.errors import UsageError
from layerstore.kernel.values import Value
from layerstore.runtime.plan import LaunchPlan

RESTART_POLICIES = ("no", "on-failure", "always", "unless-stopped")
_FIRST_DELAY_S, _LAST_DELAY_S = 0.1, 60.0
_SETTLED_S = 10.0
_LOG_SIZE_MIN = 64 << 10
_HEALTH_MIN_S = 0.001


class Restart(Value):
    """When a command that ended is started again."""

    policy: str = "no"
    """``no``, ``on-failure``, ``always`` or ``unless-stopped``. The last two are the same here:
    nothing starts by itself when the machine boots."""
    tries: int | None = None
    """Of ``on-failure``: at most so many."""

    def check(self) -> None:
        if self.policy not in RESTART_POLICIES:
            raise UsageError(
                f"{self.policy!r} is not a restart policy",
                hint="choose no, on-failure[:TRIES], always or unless-stopped",
            )
        if self.tries is not None and (self.policy != "on-failure" or self.tries < 1):
            raise UsageError(f"{self.policy}:{self.tries} is not a restart policy",
                             hint="only on-failure takes a number, of 1 or more")  # fmt: skip

    def wants(self, exit_code: int, restarts: int) -> bool:
        """Whether a command that ended so, after so many restarts, is started again."""
        if self.policy == "on-failure":
            return exit_code != 0 and (self.tries is None or restarts < self.tries)
        return self.policy != "no"


def parse_restart(text: str) -> Restart:
    """docker's ``--restart``. Raises UsageError."""
    policy, colon, tries = text.partition(":")
    if colon and not (tries.isascii() and tries.isdigit()):
        raise UsageError(f"{text!r} is not a restart policy", hint="write on-failure:5")
    return Restart(policy=policy, tries=int(tries) if colon else None)


def next_delay(delay_s: float, ran_s: float) -> float:
    """Seconds to wait before a restart: 0.1, doubled up to 60, anew after 10 s of running."""
    if not delay_s or ran_s >= _SETTLED_S:
        return _FIRST_DELAY_S
    return min(2 * delay_s, _LAST_DELAY_S)


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds of ``30s``, ``1m30s``, ``500ms`` or ``10``. Raises UsageError."""
    seconds, number, unit = 0.0, "", ""
    for letter in (text + "s" if text[-1:].isdigit() else text) + "0":
        if unit and (letter.isdigit() or letter == "."):
            if unit not in _SECONDS or not _is_number(number):
                break
            seconds, number, unit = seconds + float(number) * _SECONDS[unit], "", ""
        if letter.isdigit() or letter == ".":
            number += letter
        else:
            unit += letter
    if number == "0" and not unit and text:
        return seconds
    raise UsageError(f"{text!r} is not a duration", hint="write one such as 30s or 1m30s")


def _is_number(text: str) -> bool:
    return text.isascii() and text.replace(".", "", 1).isdigit()


class HealthCheck(Value):
    """A command that says whether the container does its work. Times in seconds."""

    argv: tuple[bytes, ...]
    interval_s: float = 30.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    """Failures count for nothing until then, or until the first success."""
    retries: int = 3

    def check(self) -> None:
        if min(self.interval_s, self.timeout_s) < _HEALTH_MIN_S or self.retries < 1:
            raise UsageError(
                "a health check needs an interval and a timeout of 1 ms or more, and a retry",
                hint="leave out what should be as usual",
            )


class Upkeep(Value):
    """What a container is promised."""

    restart: Restart = Restart()
    stop_signal: int = 15
    stop_timeout_s: float = 10.0
    log_size: int = 16 << 20
    """Bytes of one file of the log."""
    log_files: int = 4
    health: HealthCheck | None = None

    def check(self) -> None:
        if self.log_size < _LOG_SIZE_MIN or self.log_files < 1:
            raise UsageError(
                f"{self.log_files} log files of {self.log_size} bytes are too little",
                hint=f"keep at least 1 of {_LOG_SIZE_MIN}",
            )
        if self.stop_timeout_s < 0:
            raise UsageError(f"a stop timeout of {self.stop_timeout_s:g} s is in the past",
                             hint="give 0 or more seconds")  # fmt: skip


class Kept(Value):
    """What is on record for a container: enough to start it, and to enter it."""

    plan: LaunchPlan
    """Its root is empty: whoever starts it knows the layers."""
    upkeep: Upkeep = Upkeep()


class MonitorPlan(Value):
    """What a monitor does."""

    plan: LaunchPlan
    upkeep: Upkeep
    log_dir: str
    window: tuple[int, ...] | None = None
    """Rows and columns of a terminal."""
    stays_attached: bool = False
    """The caller gets the command's output from the start."""
    at_end: tuple[str, ...] = ()
    """The program that the monitor becomes once the container has ended for good."""
