"""Standard output, standard error, and every way in which a command ends.

Results go to standard output, everything else to standard error. Nothing that the library or the
system raises reaches the user as a traceback, unless ``LAYERSTORE_DEBUG=1``.
"""

from __future__ import annotations

import errno
import os
import sys

from layerstore.errors import HostError, LayerstoreError
from layerstore.report.text import escaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from types import FrameType
    from typing import BinaryIO, TextIO
else:  # ``signal`` itself costs 5 ms: it makes enums of these numbers
    import _signal

INTERRUPTED = 128 + _signal.SIGINT
_TAB = "\t"
_BROKEN_PIPE = 128 + _signal.SIGPIPE

_HINTS = {
    errno.EACCES: "become a user who may, such as root, or use another --root DIR",
    errno.EPERM: "become a user who may, such as root; layerstore doctor says what is missing",
    errno.ENOSPC: "make room: layerstore gc frees what nothing needs",
    errno.EDQUOT: "make room: layerstore gc frees what nothing needs",
    errno.ENOENT: "check the path",
    errno.EROFS: "use another --root DIR or LAYERSTORE_ROOT",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class Ended(BaseException):
    """A signal asks the process to end; the exit code is what shells expect of that."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def prepare() -> None:
    """Descriptors 0, 1 and 2 are open, text is never refused, and ending signals clean up.

    A closed descriptor would be taken by the first file that is opened, such as a lock of the
    store, and a container's command would then write into that.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a test's stand-in has none
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    for signum in (_signal.SIGTERM, _signal.SIGHUP):
        if _signal.getsignal(signum) == _signal.SIG_DFL:
            _signal.signal(signum, _end)


def _end(signum: int, _: FrameType | None) -> None:
    raise Ended(signum)


def guarded(action: Callable[[], int], *, failed: int = 1) -> int:
    """The exit code of an action, whatever it raises, which is explained on standard error.

    ``failed`` is the least exit code of a failure of ours.
    """
    try:
        code = action()
        flush()
        return code
    except LayerstoreError as error:
        return max(failed, complain(error))
    except BrokenPipeError:
        _give_up(1)
        return _BROKEN_PIPE
    except OSError as error:
        note(f"layerstore: {_describe(error)}")
        if error.errno in _HINTS:
            note(f"hint: {_HINTS[error.errno]}")
        return _traced(failed)
    except KeyboardInterrupt:
        note("layerstore: interrupted")
        return INTERRUPTED
    except Ended as ended:
        note(f"layerstore: ended by signal {ended.signum}")
        return 128 + ended.signum
    except MemoryError:
        note("layerstore: there is not enough memory")
        return failed
    except Exception as error:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        note(f"layerstore: this is a bug in layerstore: {escaped(said)}")
        note("hint: report it with what LAYERSTORE_DEBUG=1 shows in addition")
        return _traced(failed)


def _traced(code: int) -> int:
    if os.environ.get("LAYERSTORE_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    return code


def complain(error: LayerstoreError) -> int:
    """The error's message, details and hint are on standard error; its exit code."""
    lines = [escaped(line, but=_TAB) for line in error.brief.split("\n")]
    if not hasattr(error, "diagnostics"):  # a SpecError renders itself, as compilers do
        lines[0] = f"layerstore: {lines[0]}"
    if error.details:
        lines += [f"  {escaped(line, but=_TAB)}" for line in error.details.split("\n")]
    if error.hint:
        lines.append(f"hint: {escaped(error.hint)}")
    note("\n".join(lines))
    return _traced(error.exit_code)


def _describe(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    what = escaped(error.strerror or str(error) or type(error).__name__)
    return f"{' to '.join(escaped(name) for name in names)}: {what}" if names else what


def say(text: str) -> None:
    """A line of the result, on standard output."""
    _write(text + "\n")


def say_json(document: object) -> None:
    """The result as JSON, on standard output."""
    import json

    _write(json.dumps(document, indent=2) + "\n")


def _write(text: str) -> None:
    stream = _stdout()
    with _Written():
        stream.write(text)


def _stdout() -> TextIO:
    if sys.stdout is None:
        raise HostError("standard output is closed", hint="leave it open, or use > /dev/null")
    return sys.stdout


def binary() -> BinaryIO:
    """Standard output, for bytes."""
    _stdout()
    return _Bytes()  # type: ignore[return-value] # all of it that is ever used


class _Bytes:
    """Writes to standard output; what goes wrong there is not taken for the store's fault."""

    def write(self, chunk: bytes) -> int:
        with _Written():
            return _stdout().buffer.write(chunk)

    def flush(self) -> None:
        flush()


def flush() -> None:
    """What was said is written. Raises BrokenPipeError, or HostError for a full disk."""
    if sys.stdout is not None:
        with _Written():
            sys.stdout.flush()


class _Written:
    """Errors of writing to standard output are told from those of the store."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            _give_up(1)
            raise HostError(f"cannot write standard output: {error.strerror}") from error


def _give_up(fd: int) -> None:
    """What is still buffered for ``fd`` goes nowhere, so that the interpreter ends quietly."""
    nowhere = os.open("/dev/null", os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)


def note(text: str) -> None:
    """A line for people, on standard error; nobody has to be there to read it."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
    except OSError:
        _give_up(2)


def room(columns: int) -> int | None:
    """So many columns for a text that may be clipped; None where nobody looks at a terminal."""
    return columns if sys.stdout is not None and sys.stdout.isatty() else None


def draw(text: str) -> None:
    """Text on standard error as it is, with what moves the cursor of a terminal."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _give_up(2)


def columns() -> int:
    """The width of the terminal at standard error."""
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
