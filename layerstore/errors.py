"""Every way in which layerstore fails, and what the caller should do about it.

Subclasses live beside the code that raises them; this is the one drawing of the tree::

    LayerstoreError                     exit 1  failed; the message says what, the hint what to do
    ├── UsageError                      exit 2  the caller asked for something that has no meaning
    │   ├── spec.SpecError              exit 2  the spec is wrong: every mistake with its position
    │   └── names.MalformedName            exit 2  a name, digest or reference is malformed
    ├── NotFoundError                   exit 1  no such image, container, layer or object
    ├── ConflictError                   exit 1  the name is taken, the thing is in use or running
    ├── HostError                       exit 1  this host cannot do it (ability, privilege, space)
    ├── FormatError                     exit 1  foreign bytes break their format
    │   ├── formats.tar.TarError        exit 1  a malformed or hostile archive
    │   └── formats.oci.OciError        exit 1  a malformed OCI or docker document
    ├── BuildError                      exit 1  a step failed
    ├── BudgetError                     exit 3  a size budget is exceeded
    ├── DamagedError                    exit 4  the store contradicts itself
    └── runtime.plan.LaunchError        exit 125, 126 or 127, as docker and podman users expect
"""

from __future__ import annotations

import errno


class LayerstoreError(Exception):
    """What went wrong, in one sentence that quotes the offending value.

    ``hint`` is an imperative: what to do about it. ``details`` are further lines (a log's tail,
    the kernel's own messages). ``exit_code`` is the command line's.
    """

    exit_code = 1

    def __init__(self, brief: str, *, hint: str | None = None, details: str | None = None) -> None:
        super().__init__(brief)
        self.brief = brief
        self.hint = hint
        self.details = details


class UsageError(LayerstoreError):
    """The request itself is wrong: nothing was tried."""

    exit_code = 2


class NotFoundError(LayerstoreError):
    """Nothing in the store has that name."""


class ConflictError(LayerstoreError):
    """The name is taken, or the thing is in use."""


class HostError(LayerstoreError):
    """The host lacks an ability, a privilege or space."""


class FormatError(LayerstoreError):
    """Foreign bytes are not what their format says."""


class BuildError(LayerstoreError):
    """A build step failed; the store is as it was, but for cached steps."""


class BudgetError(LayerstoreError):
    """A budget that was asked for is exceeded."""

    exit_code = 3


class DamagedError(LayerstoreError):
    """The store is not what it says it is; the message names what is affected."""

    exit_code = 4


def is_full(error: BaseException | None) -> bool:
    """Whether it says that a disk or quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
