"""What a test may need of its host, as marks whose skip names the missing ability.

With ``CI=true`` a missing tool is a failure: ``.ci/run`` installs what the tests need.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

IN_CI = os.environ.get("CI") == "true"


def needs_tool(*tools: str) -> pytest.MarkDecorator:
    """Skip where a foreign program is not installed; fail there in CI."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing and IN_CI:
        return pytest.mark.usefixtures("missing_tool_is_a_failure")
    return pytest.mark.skipif(bool(missing), reason=f"needs the program {', '.join(missing)}")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _can(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except OSError:
        return False


needs_userns = pytest.mark.skipif(
    not _can("unshare", "-Ur", "true"), reason="needs user namespaces for plain users"
)

_TRY_OVERLAY = (
    "mount -t tmpfs x /mnt && cd /mnt && mkdir l u w m"
    " && mount -t overlay x -o lowerdir=l,upperdir=u,workdir=w m"
)
needs_overlay = pytest.mark.skipif(
    os.geteuid() != 0 or not _can("unshare", "-m", "sh", "-c", _TRY_OVERLAY),
    reason="needs root and overlayfs",
)
