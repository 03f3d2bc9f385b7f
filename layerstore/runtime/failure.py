"""Errors on their way from one process to another."""

from __future__ import annotations

from layerstore.errors import ConflictError, HostError, LayerstoreError
from layerstore.kernel.values import Value
from layerstore.runtime.plan import LaunchError
from layerstore.runtime.record import emit, parse


class Failure(Value):
    """Why a container did not start."""

    kind: str
    brief: str
    hint: str | None
    details: str | None
    exit_code: int


def emit_failure(error: LayerstoreError | OSError) -> bytes:
    """The error as text."""
    if isinstance(error, OSError):
        error = LaunchError(f"the container did not start: {error}")
    failure = Failure(
        kind=type(error).__name__,
        brief=error.brief,
        hint=error.hint,
        details=error.details,
        exit_code=error.exit_code,
    )
    return emit(failure).encode()


def parse_failure(text: bytes) -> LayerstoreError:
    """The error, to be raised here; what is no error of a launch becomes one."""
    failure = parse(text.decode())
    if not isinstance(failure, Failure):
        return LaunchError("the container did not start, and why cannot be read")
    if failure.kind == "ConflictError":
        return ConflictError(failure.brief, hint=failure.hint, details=failure.details)
    if failure.kind == "HostError":
        return HostError(failure.brief, hint=failure.hint, details=failure.details)
    return LaunchError(
        failure.brief,
        hint=failure.hint,
        details=failure.details,
        exit_code=failure.exit_code if failure.kind == "LaunchError" else 125,
    )
