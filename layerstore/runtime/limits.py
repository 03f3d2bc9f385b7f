"""Resource limits, and docker's spellings of them."""

from __future__ import annotations

from layerstore.errors import UsageError
from layerstore.kernel.cgroups import CPU_PERIOD_US, Settings
from layerstore.kernel.values import Value

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MEMORY_FLOOR = 6 << 20


class Limits(Value):
    """What a container may use; None is no limit."""

    memory: int | None = None
    """Bytes."""
    memory_swap: int | None = None
    """Bytes of memory and swap together, as docker means it; -1 is unlimited swap."""
    cpus: float | None = None
    pids: int | None = None

    def check(self) -> None:
        if self.memory is not None and self.memory < _MEMORY_FLOOR:
            raise UsageError(
                f"a memory limit of {self.memory} bytes is below 6 MiB",
                hint="no program starts in less; ask for more, such as 64m",
            )
        if self.memory_swap is not None and self.memory_swap != -1:
            if self.memory is None:
                raise UsageError(
                    "--memory-swap has no meaning without --memory", hint="add --memory"
                )
            if self.memory_swap < self.memory:
                raise UsageError(
                    f"memory and swap together ({self.memory_swap} bytes) are less than the memory "
                    f"limit ({self.memory} bytes)",
                    hint="--memory-swap counts both: make it at least --memory",
                )
        if self.cpus is not None and not self.cpus >= 0.01:
            raise UsageError(f"{self.cpus:g} CPUs are too few", hint="ask for at least 0.01")
        if self.pids is not None and self.pids < 1:
            raise UsageError(
                f"a limit of {self.pids} processes leaves none", hint="ask for at least 1"
            )

    def settings(self) -> Settings:
        """The same, as cgroups take them."""
        return Settings(
            memory=self.memory,
            memory_swap=self.memory_swap,
            cpu_quota_us=None if self.cpus is None else round(self.cpus * CPU_PERIOD_US),
            pids=self.pids,
        )


def parse_size(text: str) -> int:
    """Bytes of ``512m``, ``1.5g``, ``64MiB`` or ``1024``; units are powers of 1024, as docker's."""
    number = text.strip().lower()
    stem = number.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = number[len(stem) :].removesuffix("ib")
    if len(unit) == 2:
        unit = unit.removesuffix("b")
    if unit not in _UNITS or not _is_decimal(stem):
        raise UsageError(
            f"{text!r} is not a size", hint="write a number and one of b, k, m, g: 512m, 1.5g"
        )
    return int(float(stem) * _UNITS[unit]) if "." in stem else int(stem) * _UNITS[unit]


def parse_swap(text: str) -> int:
    """As parse_size, and ``-1`` for unlimited."""
    return -1 if text.strip() == "-1" else parse_size(text)


def parse_cpus(text: str) -> float:
    """Processors of ``1.5``."""
    if not _is_decimal(text.strip()):
        raise UsageError(f"{text!r} is not a number of CPUs", hint="write a number such as 1.5")
    return float(text)


def parse_pids(text: str) -> int | None:
    """Processes; ``-1`` and ``0`` are no limit, as docker's."""
    stripped = text.strip()
    if stripped == "-1":
        return None
    if not (stripped.isascii() and stripped.isdigit()):
        raise UsageError(f"{text!r} is not a number of processes", hint="write one such as 100")
    return int(stripped) or None


def _is_decimal(text: str) -> bool:
    whole, dot, fraction = text.partition(".")
    digits = whole + fraction
    return bool(digits) and digits.isascii() and digits.isdigit() and (bool(fraction) or not dot)
