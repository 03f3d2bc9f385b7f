"""The caller's streams as those of a detached command, until it ends or the caller detaches."""

from __future__ import annotations

import os
import select

from layerstore.errors import ConflictError, HostError, LayerstoreError, UsageError
from layerstore.kernel import process
from layerstore.kernel.fs import write_all
from layerstore.kernel.process import SIGHUP, SIGWINCH
from layerstore.runtime import control
from layerstore.runtime.control import (
    ATTACH,
    ENDED,
    ERRORS,
    FAILED,
    HELLO,
    OUTPUT,
    WAIT,
    Deframer,
)
from layerstore.runtime.deliver import deliver
from layerstore.runtime.failure import parse_failure
from layerstore.runtime.record import parse
from layerstore.runtime.state import read_state
from layerstore.runtime.supervision import HANDLED, Outcome, poll_once
from layerstore.runtime.terminal import Pump, RawMode, copy_window_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.runtime.state import StrPath

DETACH_KEYS = b"\x10\x11"
"""ctrl-p ctrl-q."""
_VEOF = b"\x04"


def parse_keys(text: str) -> bytes:
    """docker's ``--detach-keys``: ``ctrl-p,ctrl-q``; letters and ``ctrl-`` of @a-z[]\\^_."""
    keys = b""
    for word in text.split(",") if text else ():
        letter = word.removeprefix("ctrl-")
        if len(letter) != 1 or not letter.isascii():
            raise UsageError(f"{text!r} are no detach keys", hint="write ctrl-p,ctrl-q or a,b")
        if word == letter:
            keys += letter.encode()
        elif letter.lower() in "@abcdefghijklmnopqrstuvwxyz[\\]^_":
            keys += bytes([ord(letter.upper()) & 0x1F])
        else:
            raise UsageError(f"ctrl-{letter} is no key", hint="write ctrl- and a letter")
    return keys


def attach(
    state_dir: StrPath,
    *,
    stdin: int | None = 0,
    stdout: int = 1,
    stderr: int = 2,
    detach_keys: bytes = DETACH_KEYS,
) -> Outcome | None:
    """How the container ended, for good; None if the caller has detached.

    A ``stdin`` of None sends nothing. Signals go to the command, but for a hangup, which detaches.
    Raises ConflictError if nobody keeps the container's streams.
    """
    try:
        channel = control.connect(state_dir, ATTACH)
    except OSError:
        raise ConflictError(
            "nothing can be attached to: the container does not run, or in the foreground of "
            "another command",
            hint="start it, or run it with -d",
        ) from None
    return follow(channel, state_dir, stdin, stdout, stderr, detach_keys)


def follow(
    channel: int,
    state_dir: StrPath,
    stdin: int | None,
    stdout: int,
    stderr: int,
    detach_keys: bytes,
) -> Outcome | None:
    """As ``attach``, on a channel to the monitor, which is closed in the end."""
    mask = process.block_signals(HANDLED)
    attached = _Attached(channel, state_dir, stdin, stdout, stderr, detach_keys)
    try:
        return attached.run()
    finally:
        attached.close()
        process.restore_signals(mask)


def await_outcome(state_dir: StrPath) -> Outcome | None:
    """How the container ended, once it has for good; None if no monitor is there to say."""
    try:
        channel = control.connect(state_dir, WAIT)
    except OSError:
        return None
    deframer = Deframer()
    try:
        while chunk := os.read(channel, 1 << 16):
            for kind, payload in deframer.feed(chunk):
                if kind == ENDED:
                    return parse_outcome(payload)
    except ConnectionResetError:
        pass
    finally:
        os.close(channel)
    return None


def parse_outcome(payload: bytes) -> Outcome | None:
    outcome = parse(payload.decode())
    return outcome if isinstance(outcome, Outcome) else None


class _Detached(Exception):
    pass


class _Attached:
    def __init__(
        self,
        channel: int,
        state_dir: StrPath,
        stdin: int | None,
        stdout: int,
        stderr: int,
        detach_keys: bytes,
    ) -> None:
        self._channel = channel
        self._signals = process.signal_fd(HANDLED)
        self._state_dir = state_dir
        self._stdin = stdin
        self._targets = {OUTPUT: stdout, ERRORS: stderr}
        self._keys = detach_keys
        self._held = b""
        """The detach keys typed so far."""
        self._deframer = Deframer()
        self._input: Pump | None = None
        self._input_fd = -1
        self._raw: RawMode | None = None
        self._failure: LayerstoreError | None = None
        self._outcome: Outcome | None = None

    def run(self) -> Outcome | None:
        poll = select.poll()
        try:
            while True:
                wanted = {self._channel: select.POLLIN, self._signals: select.POLLIN}
                pump = self._input
                if pump is not None and pump.is_open:
                    fd, writes = pump.waits_for
                    wanted[fd] = wanted.get(fd, 0) | (select.POLLOUT if writes else select.POLLIN)
                ready = poll_once(poll, wanted)
                for signum in process.read_signals(self._signals):
                    self._on_signal(signum)
                if pump is not None and pump.is_open and pump.waits_for[0] in ready:
                    pump.step()
                if self._channel in ready and not self._receive():
                    break
        except _Detached:
            return None
        if self._failure is not None:
            raise self._failure
        if self._outcome is None:
            raise HostError("how the container ended is not known: its monitor was killed")
        return self._outcome

    def _receive(self) -> bool:
        """Whether there will be more."""
        try:
            chunk = os.read(self._channel, 1 << 16)
        except ConnectionResetError:  # the monitor was killed
            chunk = b""
        for kind, payload in self._deframer.feed(chunk):
            if kind == HELLO:
                monitor, number, is_terminal = map(int, payload.split())
                self._take_input(monitor, number, is_terminal=bool(is_terminal))
            elif kind == FAILED:
                self._failure = parse_failure(payload)
            elif kind == ENDED:
                self._outcome = parse_outcome(payload)
            elif kind in self._targets:
                self._write(kind, payload)
        return bool(chunk)

    def _write(self, kind: bytes, payload: bytes) -> None:
        try:
            write_all(self._targets[kind], payload)
        except BrokenPipeError:  # nobody reads any more
            raise _Detached from None

    def _take_input(self, monitor: int, number: int, *, is_terminal: bool) -> None:
        self._drop_input()
        if number < 0:
            return
        pidfd = os.pidfd_open(monitor)  # it speaks to us, so that the pid is still its own
        try:
            self._input_fd = process.take_descriptor(pidfd, number)
        finally:
            os.close(pidfd)
        if self._stdin is None:
            return
        if is_terminal:
            copy_window_size(self._stdin, self._input_fd)
            if self._raw is None:
                self._raw = RawMode(self._stdin)
        self._input = Pump(
            self._stdin,
            self._input_fd,
            at_end=_VEOF if is_terminal else b"",
            translate=self._without_keys if is_terminal and self._keys else None,
        )

    def _without_keys(self, chunk: bytes) -> bytes:
        """What of the typed bytes goes to the command. Raises _Detached after the last key."""
        passed = b""
        for at in range(len(chunk)):
            self._held += chunk[at : at + 1]
            if self._held == self._keys:
                raise _Detached
            while self._held and not self._keys.startswith(self._held):
                passed += self._held[:1]
                self._held = self._held[1:]
        return passed

    def _on_signal(self, signum: int) -> None:
        if signum == SIGWINCH:
            if self._stdin is not None and self._input_fd >= 0:
                copy_window_size(self._stdin, self._input_fd)
        elif signum == SIGHUP:
            raise _Detached
        else:
            try:
                os.close(deliver(self._state_dir, read_state(self._state_dir), signum))
            except ConflictError:  # it has just ended, or is about to be restarted
                pass

    def _drop_input(self) -> None:
        if self._input_fd >= 0:
            os.close(self._input_fd)
            self._input_fd, self._input = -1, None

    def close(self) -> None:
        if self._raw is not None:
            self._raw.restore()
        self._drop_input()
        for fd in (self._channel, self._signals):
            os.close(fd)
