"""The stub's bytes are what its assembly says, and it does what it says."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from layerstore.kernel.execstub import (
    _CODE,
    _INIT_CODE,
    elf_image,
    exec_through,
    sealed_init,
    sealed_stub,
)
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

INIT_ASSEMBLY = {
    "x86_64": """
        mov 8(%rsp), %rax       # argv[0]
        cmpb $0x20, (%rax)
        jne 9f
        mov %rsp, %rbp
        sub $192, %rsp
        movq $-1, -8(%rbp)      # rt_sigprocmask(SIG_BLOCK, &all, 0, 8)
        mov $14, %eax
        xor %edi, %edi
        lea -8(%rbp), %rsi
        xor %edx, %edx
        mov $8, %r10d
        syscall
        mov $57, %eax           # fork()
        syscall
        test %eax, %eax
        js 8f
        jnz 2f
        mov $109, %eax          # setpgid(0, 0)
        xor %edi, %edi
        xor %esi, %esi
        syscall
        mov $39, %eax           # ioctl(0, TIOCSPGRP, &getpid())
        syscall
        mov %eax, -16(%rbp)
        mov $16, %eax
        xor %edi, %edi
        mov $0x5410, %esi
        lea -16(%rbp), %rdx
        syscall
        movq $0, -8(%rbp)       # rt_sigprocmask(SIG_SETMASK, &none, 0, 8)
        mov $14, %eax
        mov $2, %edi
        lea -8(%rbp), %rsi
        xor %edx, %edx
        mov $8, %r10d
        syscall
        mov $72, %eax           # fcntl(3, F_SETFD, FD_CLOEXEC)
        mov $3, %edi
        mov $2, %esi
        mov $1, %edx
        syscall
        mov (%rbp), %rbx        # execve(argv[1], &argv[2], envp)
        mov 16(%rbp), %rdi
        lea 24(%rbp), %rsi
        lea 16(%rbp,%rbx,8), %rdx
        mov $59, %eax
        syscall
    8:  neg %eax                # write(3, &errno, 4)
        mov %eax, -16(%rbp)
        mov $1, %eax
        mov $3, %edi
        lea -16(%rbp), %rsi
        mov $4, %edx
        syscall
    9:  mov $126, %edi
        jmp 7f
    2:  mov %eax, %ebx          # the child
        mov $3, %eax            # close(3)
        mov $3, %edi
        syscall
    3:  mov $128, %eax          # rt_sigtimedwait(&all, &info, 0, 8)
        lea -8(%rbp), %rdi
        lea -160(%rbp), %rsi
        xor %edx, %edx
        mov $8, %r10d
        syscall
        test %eax, %eax
        js 3b
        cmp $17, %eax           # SIGCHLD
        je 4f
        mov %eax, %esi          # kill(child, signal)
        mov %ebx, %edi
        mov $62, %eax
        syscall
        jmp 3b
    4:  mov $61, %eax           # wait4(-1, &status, WNOHANG, 0)
        mov $-1, %rdi
        lea -16(%rbp), %rsi
        mov $1, %edx
        xor %r10d, %r10d
        syscall
        test %eax, %eax
        jle 3b
        cmp %ebx, %eax
        jne 4b
        mov -16(%rbp), %edi     # 128 + signal, or the exit code
        mov %edi, %eax
        and $0x7f, %eax
        jz 5f
        lea 128(%rax), %edi
        jmp 7f
    5:  shr $8, %edi
        and $0xff, %edi
    7:  mov $231, %eax          # exit_group
        syscall
    """,
    "aarch64": """
        ldr x0, [sp, #8]        // argv[0]
        ldrb w1, [x0]
        cmp w1, #0x20
        b.ne 9f
        mov x19, sp
        sub sp, sp, #192
        mov x0, #-1             // rt_sigprocmask(SIG_BLOCK, &all, 0, 8)
        str x0, [x19, #-8]
        mov x8, #135
        mov x0, #0
        sub x1, x19, #8
        mov x2, #0
        mov x3, #8
        svc #0
        mov x8, #220            // clone(SIGCHLD, 0, 0, 0, 0)
        mov x0, #17
        mov x1, #0
        mov x2, #0
        mov x3, #0
        mov x4, #0
        svc #0
        cmp w0, #0
        b.lt 8f
        b.gt 2f
        mov x8, #154            // setpgid(0, 0)
        mov x0, #0
        mov x1, #0
        svc #0
        mov x8, #172            // ioctl(0, TIOCSPGRP, &getpid())
        svc #0
        str w0, [x19, #-16]
        mov x8, #29
        mov x0, #0
        mov x1, #0x5410
        sub x2, x19, #16
        svc #0
        str xzr, [x19, #-8]     // rt_sigprocmask(SIG_SETMASK, &none, 0, 8)
        mov x8, #135
        mov x0, #2
        sub x1, x19, #8
        mov x2, #0
        mov x3, #8
        svc #0
        mov x8, #25             // fcntl(3, F_SETFD, FD_CLOEXEC)
        mov x0, #3
        mov x1, #2
        mov x2, #1
        svc #0
        ldr x3, [x19]           // execve(argv[1], &argv[2], envp)
        ldr x0, [x19, #16]
        add x1, x19, #24
        add x2, x19, #16
        add x2, x2, x3, lsl #3
        mov x8, #221
        svc #0
    8:  neg w0, w0              // write(3, &errno, 4)
        str w0, [x19, #-16]
        mov x8, #64
        mov x0, #3
        sub x1, x19, #16
        mov x2, #4
        svc #0
    9:  mov w0, #126
        b 7f
    2:  mov w20, w0             // the child
        mov x8, #57             // close(3)
        mov x0, #3
        svc #0
    3:  mov x8, #137            // rt_sigtimedwait(&all, &info, 0, 8)
        sub x0, x19, #8
        sub x1, x19, #160
        mov x2, #0
        mov x3, #8
        svc #0
        cmp w0, #0
        b.lt 3b
        cmp w0, #17             // SIGCHLD
        b.eq 4f
        mov w1, w0              // kill(child, signal)
        mov w0, w20
        mov x8, #129
        svc #0
        b 3b
    4:  mov x8, #260            // wait4(-1, &status, WNOHANG, 0)
        mov x0, #-1
        sub x1, x19, #16
        mov x2, #1
        mov x3, #0
        svc #0
        cmp w0, #0
        b.le 3b
        cmp w0, w20
        b.ne 4b
        ldr w1, [x19, #-16]     // 128 + signal, or the exit code
        ands w0, w1, #0x7f
        b.eq 5f
        add w0, w0, #128
        b 7f
    5:  ubfx w0, w1, #8, #8
    7:  mov x8, #94             // exit_group
        svc #0
    """,
}


def _tool(machine: str, name: str) -> str | None:
    return shutil.which(f"{machine}-linux-gnu-{name}") or (
        shutil.which(name) if machine == MACHINE else None
    )


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    ("assembly", "code"),
    [
        pytest.param(ASSEMBLY, _CODE, id="stub"),
        pytest.param(INIT_ASSEMBLY, _INIT_CODE, id="init"),
    ],
)
def test_the_code_is_its_assembly(
    tmp_path: Path, machine: str, assembly: dict[str, str], code: dict[str, str]
) -> None:
    assembler, objcopy = _tool(machine, "as"), _tool(machine, "objcopy")
    if assembler is None or objcopy is None:
        pytest.skip(f"needs binutils for {machine}")
    source = tmp_path / "stub.s"
    source.write_text(assembly[machine])
    subprocess.run([assembler, source, "-o", tmp_path / "stub.o"], check=True)
    subprocess.run(
        [objcopy, "-O", "binary", "-j", ".text", tmp_path / "stub.o", tmp_path / "code"],
        check=True,
    )
    assert (tmp_path / "code").read_bytes().hex() == code[machine]


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


def _as_init(script: str) -> tuple[int, bytes]:
    """(exit code, output) of a shell script below the init."""
    output_read, output_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(output_write, 1)
            os.set_inheritable(os.open("/dev/null", os.O_WRONLY), True)
            os.closerange(4, 100)
            exec_through(sealed_init(), b"/bin/sh", (b"sh", b"-c", script.encode()), {})
        finally:
            os._exit(99)
    os.close(output_write)
    output = b"".join(iter(lambda: os.read(output_read, 4096), b""))
    os.close(output_read)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output


@pytest.mark.parametrize(
    ("script", "code", "output"),
    [
        pytest.param("exit 7", 7, b"", id="exit-code"),
        pytest.param("kill -9 $$", 137, b"", id="killed"),
        pytest.param("trap 'echo term; exit 3' TERM; kill $PPID; sleep 5", 3, b"term\n",
                     id="passes-signals-on"),
        pytest.param("(sleep 0.01 &) ; sleep 0.1; echo end", 0, b"end\n", id="others-end-first"),
    ],
)  # fmt: skip
def test_the_init_ends_as_its_child_does(script: str, code: int, output: bytes) -> None:
    assert _as_init(script) == (code, output)


@pytest.mark.skipif(shutil.which("qemu-aarch64-static") is None, reason="needs qemu-aarch64-static")
def test_the_other_machines_init_works_too(tmp_path: Path) -> None:
    init = tmp_path / "init"
    init.write_bytes(elf_image("aarch64", init=True))
    init.chmod(0o755)
    script = "trap 'exit 5' TERM; kill $PPID; sleep 5"
    command = ["qemu-aarch64-static", "-0", " ", str(init), "/bin/sh", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 5
