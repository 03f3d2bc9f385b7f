"""The stub's bytes are what its assembly says, and it does what it says."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from layerstore.kernel.execstub import _CODE, elf_image, exec_through, sealed_stub
from layerstore.kernel.numbers import MACHINE

ASSEMBLY = {
    "x86_64": """
        mov 8(%rsp), %rax       # argv[0]
        cmpb $0x20, (%rax)
        jne 1f
        mov (%rsp), %rbx        # argc
        mov $72, %eax           # fcntl(3, F_SETFD, FD_CLOEXEC)
        mov $3, %edi
        mov $2, %esi
        mov $1, %edx
        syscall
        mov 16(%rsp), %rdi      # execve(argv[1], &argv[2], envp)
        lea 24(%rsp), %rsi
        lea 16(%rsp,%rbx,8), %rdx
        mov $59, %eax
        syscall
        neg %eax                # write(3, &errno, 4)
        mov %eax, (%rsp)
        mov $1, %eax
        mov $3, %edi
        mov %rsp, %rsi
        mov $4, %edx
        syscall
    1:  mov $231, %eax          # exit_group(126)
        mov $126, %edi
        syscall
    """,
    "aarch64": """
        ldr x0, [sp, #8]        // argv[0]
        ldrb w1, [x0]
        cmp w1, #0x20
        b.ne 1f
        ldr x19, [sp]           // argc
        mov x8, #25             // fcntl(3, F_SETFD, FD_CLOEXEC)
        mov x0, #3
        mov x1, #2
        mov x2, #1
        svc #0
        ldr x0, [sp, #16]       // execve(argv[1], &argv[2], envp)
        add x1, sp, #24
        add x2, sp, #16
        add x2, x2, x19, lsl #3
        mov x8, #221
        svc #0
        neg w0, w0              // write(3, &errno, 4)
        str w0, [sp]
        mov x8, #64
        mov x0, #3
        mov x1, sp
        mov x2, #4
        svc #0
    1:  mov x8, #94             // exit_group(126)
        mov x0, #126
        svc #0
    """,
}


def _tool(machine: str, name: str) -> str | None:
    return shutil.which(f"{machine}-linux-gnu-{name}") or (
        shutil.which(name) if machine == MACHINE else None
    )


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_code_is_its_assembly(tmp_path: Path, machine: str) -> None:
    assembler, objcopy = _tool(machine, "as"), _tool(machine, "objcopy")
    if assembler is None or objcopy is None:
        pytest.skip(f"needs binutils for {machine}")
    source = tmp_path / "stub.s"
    source.write_text(ASSEMBLY[machine])
    subprocess.run([assembler, source, "-o", tmp_path / "stub.o"], check=True)
    subprocess.run(
        [objcopy, "-O", "binary", "-j", ".text", tmp_path / "stub.o", tmp_path / "code"],
        check=True,
    )
    assert (tmp_path / "code").read_bytes().hex() == _CODE[machine]


def _through_stub(path: bytes, *argv: bytes) -> tuple[int, bytes, bytes]:
    """(exit code, report, output) of a child that execs through the stub."""
    report_read, report_write = os.pipe()
    output_read, output_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(output_write, 1)
            os.dup2(report_write, 3)
            os.closerange(4, 100)
            exec_through(sealed_stub(), path, argv, {b"A": b"b"})
        finally:
            os._exit(99)
    os.close(report_write)
    os.close(output_write)
    report = os.read(report_read, 100)
    output = b"".join(iter(lambda: os.read(output_read, 4096), b""))
    os.close(report_read)
    os.close(output_read)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), report, output


def test_the_program_gets_its_arguments_and_environment() -> None:
    script = b'echo "$0|$1|$A"; ls /proc/self/fd | wc -l; exit 5'
    code, report, output = _through_stub(b"/bin/sh", b"sh", b"-c", script, b"zero", b"one two")
    assert (code, report) == (5, b"")
    assert output.splitlines()[0] == b"zero|one two|b"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param(b"/nosuch", errno.ENOENT, id="missing"),
        pytest.param(b"/etc/passwd", errno.EACCES, id="not-executable"),
        pytest.param(b"/etc/passwd/x", errno.ENOTDIR, id="not-a-directory"),
    ],
)
def test_an_errno_is_reported(path: bytes, expected: int) -> None:
    code, report, _ = _through_stub(path, b"x")
    assert (code, report) == (126, expected.to_bytes(4, "little"))


def test_a_script_that_names_its_interpreter_by_proc_gets_the_stub(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/proc/self/exe\nprint('python')\n")
    script.chmod(0o755)
    assert _through_stub(os.fsencode(script), b"script") == (126, b"", b"")


def test_the_stub_is_sealed() -> None:
    fd = sealed_stub()
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


@pytest.mark.skipif(shutil.which("qemu-aarch64-static") is None, reason="needs qemu-aarch64-static")
def test_the_other_machines_stub_works_too(tmp_path: Path) -> None:
    stub = tmp_path / "stub"
    stub.write_bytes(elf_image("aarch64"))
    stub.chmod(0o755)
    command = ["qemu-aarch64-static", "-0", " ", str(stub), "/bin/echo", "echo", "a b"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"a b\n")
