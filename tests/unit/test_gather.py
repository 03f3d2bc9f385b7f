"""Host bases of made-up hosts: the loader's search, symlinks, scripts, pieces and errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_elf import fake_elf, library, link, loader, merged_host, program, put

from layerstore.errors import HostError, UsageError
from layerstore.formats import ldcache
from layerstore.host.closure import HostTree, Libraries
from layerstore.host.pieces import HostBase, collect, owning_packages


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return merged_host(tmp_path)


def objects(host: Path, name: str) -> list[str]:
    closure = Libraries(HostTree(host)).closure(name.encode())
    assert not closure.missing
    return [os.fsdecode(one) for one in closure.names]


def paths(base: HostBase, kind: str) -> list[str]:
    return [os.fsdecode(file.path) for file in base.files if file.kind == kind]


def links(base: HostBase) -> dict[str, str]:
    return {
        os.fsdecode(file.path): os.fsdecode(file.link)
        for file in base.files
        if file.kind == "symlink"
    }


LD = "/lib64/ld-linux-x86-64.so.2"
ARCH = "/lib/x86_64-linux-gnu"


# The loader's search.


def test_what_an_early_runpath_found_satisfies_a_later_library_without_one(host: Path) -> None:
    put(host, "/opt/app/run", program("liba.so", "libb.so", runpath="$ORIGIN/private"), 0o755)
    put(host, "/opt/app/private/liba.so", library("liba.so", "libdeep.so"))
    put(host, "/opt/app/private/libb.so", library("libb.so"))
    put(host, "/usr/lib/libdeep.so", library("libdeep.so", "libb.so"))
    assert objects(host, "/opt/app/run") == [
        "/opt/app/run",
        LD,
        "/opt/app/private/liba.so",
        "/opt/app/private/libb.so",
        "/lib/libdeep.so",
    ]


def test_a_runpath_is_not_inherited_and_an_rpath_is(host: Path) -> None:
    put(host, "/opt/private/libdeep.so", library("libdeep.so"))
    put(host, "/usr/lib/liba.so", library("liba.so", "libdeep.so"))
    put(host, "/usr/bin/with-rpath", program("liba.so", rpath="/opt/private"), 0o755)
    assert objects(host, "/usr/bin/with-rpath")[-1] == "/opt/private/libdeep.so"
    put(host, "/usr/bin/with-runpath", program("liba.so", runpath="/opt/private"), 0o755)
    with pytest.raises(HostError) as caught:
        collect(["/usr/bin/with-runpath"], host_root=host)
    assert caught.value.brief == (
        "/lib/liba.so needs libdeep.so (for /usr/bin/with-runpath), which is not on this host"
    )
    assert caught.value.details == (f"looked in {ARCH}, /usr/lib/x86_64-linux-gnu, /lib, /usr/lib")


def test_a_runpath_switches_the_rpath_of_the_same_object_off(host: Path) -> None:
    put(host, "/r/liba.so", library("liba.so"))
    put(host, "/u/liba.so", library("liba.so"))
    put(host, "/usr/bin/both", program("liba.so", rpath="/r", runpath="/u"), 0o755)
    assert objects(host, "/usr/bin/both")[-1] == "/u/liba.so"


@pytest.mark.parametrize(
    ("runpath", "directory"),
    [
        ("$ORIGIN/../lib", "/opt/app/lib"),
        ("${ORIGIN}", "/opt/app/bin"),
        ("/opt/$LIB/x", "/opt/lib/x86_64-linux-gnu/x"),
        ("/opt/${PLATFORM}", "/opt/x86_64"),
        ("relative:/abs", "/abs"),
        ("$ORIGINAL:/abs", "/abs"),
    ],
)
def test_dynamic_string_tokens(host: Path, runpath: str, directory: str) -> None:
    put(host, f"{directory}/liba.so", library("liba.so"))
    put(host, "/opt/app/bin/run", program("liba.so", runpath=runpath), 0o755)
    link(host, "/usr/bin/run", "/opt/app/bin/run")
    found = HostTree(host).find(objects(host, "/usr/bin/run")[-1].encode())
    assert found is not None and found.real == f"{directory}/liba.so".encode()


def test_libraries_of_another_class_or_machine_are_passed_over(host: Path) -> None:
    put(host, "/usr/bin/run", program("liba.so", runpath="/wrong:/foreign:/text:/right"), 0o755)
    put(host, "/wrong/liba.so", library("liba.so", bits=32))
    put(host, "/foreign/liba.so", library("liba.so", machine=183))
    put(host, "/text/liba.so", "INPUT(liba.so.1)")
    put(host, "/right/liba.so", library("liba.so"))
    assert objects(host, "/usr/bin/run")[-1] == "/right/liba.so"


def test_default_directories_are_the_loaders_own(host: Path) -> None:
    own = library("ld-other.so", tail=b"\0/odd/lib64/\0/odd/usr/lib64/\0")
    put(host, "/usr/lib64/ld-other.so", own, 0o755)
    put(host, "/odd/usr/lib64/liba.so", library("liba.so"))
    run = fake_elf(interpreter="/lib64/ld-other.so", needed=["liba.so"])
    put(host, "/usr/bin/run", run, 0o755)
    assert objects(host, "/usr/bin/run")[-1] == "/odd/usr/lib64/liba.so"


def test_nodeflib_keeps_out_of_the_default_directories(host: Path) -> None:
    put(host, "/usr/lib/liba.so", library("liba.so"))
    put(host, "/usr/bin/run", program("liba.so", flags_1=0x800), 0o755)
    missing = Libraries(HostTree(host)).closure(b"/usr/bin/run").missing
    assert [(one.soname, one.needed_by) for one in missing] == [(b"liba.so", b"/usr/bin/run")]


def test_hwcaps_directories_are_passed_over_for_the_base_library(host: Path) -> None:
    put(host, f"/usr{ARCH}/glibc-hwcaps/x86-64-v3/liba.so", library("liba.so"))
    put(host, f"/usr{ARCH}/liba.so", library("liba.so"))
    put(host, "/usr/bin/run", program("liba.so"), 0o755)
    assert objects(host, "/usr/bin/run")[-1] == f"{ARCH}/liba.so"


def test_musl_inherits_runpaths_and_reads_its_own_path_file(host: Path) -> None:
    put(host, "/usr/lib/ld-musl-x86_64.so.1", library("libc.musl-x86_64.so.1"), 0o755)
    put(host, "/etc/ld-musl-x86_64.path", "/lib:/apk/lib\n")
    put(host, "/private/libdeep.so", library("libdeep.so", "libc.so"))
    put(host, "/apk/lib/liba.so", library("liba.so", "libdeep.so"))
    run = fake_elf(
        interpreter="/lib/ld-musl-x86_64.so.1",
        needed=["liba.so", "libc.musl-x86_64.so.1"],
        runpath="/private",
    )
    put(host, "/usr/bin/run", run, 0o755)
    assert objects(host, "/usr/bin/run") == [
        "/usr/bin/run",
        "/lib/ld-musl-x86_64.so.1",
        "/apk/lib/liba.so",
        "/private/libdeep.so",
    ]
    assert "etc/ld-musl-x86_64.path" in paths(collect(["/usr/bin/run"], host_root=host), "file")


# /etc/ld.so.conf and the cache.


def test_a_library_found_only_through_ld_so_conf_gets_a_cache(host: Path) -> None:
    put(host, "/etc/ld.so.conf", "# ours\ninclude ld.so.conf.d/*.conf\n")
    put(host, "/etc/ld.so.conf.d/b.conf", "/opt/b/lib # second\n")
    put(host, "/etc/ld.so.conf.d/a.conf", "hwcap 1 nosegneg\n/usr/lib\n/opt/a/lib/\n")
    put(host, "/etc/ld.so.conf.d/ignored", "/opt/ignored\n")
    put(host, "/opt/a/lib/liba.so.1.2", library("liba.so.1"))
    link(host, "/opt/a/lib/liba.so.1", "liba.so.1.2")
    put(host, "/opt/b/lib/liba.so.1", library("liba.so.1"))
    put(host, "/usr/lib/libplain.so", library("libplain.so"))
    put(host, "/usr/bin/run", program("liba.so.1", "libplain.so"), 0o755)
    base = collect(["/usr/bin/run"], host_root=host)
    [cache] = [file for file in base.files if file.path == b"etc/ld.so.cache"]
    assert ldcache.parse(cache.content or b"", little_endian=True) == [
        ldcache.CachedLibrary(b"liba.so.1", b"/opt/a/lib/liba.so.1", 0x0303)
    ]
    assert links(base)["opt/a/lib/liba.so.1"] == "liba.so.1.2"
    assert "opt/b/lib/liba.so.1" not in paths(base, "file")


def test_no_cache_where_the_defaults_suffice(host: Path) -> None:
    put(host, "/etc/ld.so.conf", "/usr/lib/x86_64-linux-gnu\n/opt/nothing\n")
    put(host, "/usr/bin/run", program("libc.so.6"), 0o755)
    assert "etc/ld.so.cache" not in paths(collect(["/usr/bin/run"], host_root=host), "file")


# What is opened at run time.


def test_libgcc_comes_along_for_programs_that_end_threads(host: Path) -> None:
    put(host, f"/usr{ARCH}/libgcc_s.so.1", library("libgcc_s.so.1", "libc.so.6"))
    put(host, "/usr/bin/plain", program("libc.so.6", names=["pthread_create"]), 0o755)
    put(host, "/usr/bin/cancels", program("libc.so.6", names=["pthread_cancel"]), 0o755)
    assert f"{ARCH}/libgcc_s.so.1" not in objects(host, "/usr/bin/plain")
    assert objects(host, "/usr/bin/cancels")[-1] == f"{ARCH}/libgcc_s.so.1"


def test_the_absence_of_libgcc_is_a_warning(host: Path) -> None:
    put(host, "/usr/bin/cancels", program("libc.so.6", names=["pthread_cancel"]), 0o755)
    assert collect(["/usr/bin/cancels"], host_root=host).warnings == (
        f"{ARCH}/libc.so.6 may open libgcc_s.so.1 at run time, which is not on this host",
    )


@pytest.mark.parametrize(
    ("libc_names", "expected"),
    [
        (["GLIBC_2.34"], []),
        (["GLIBC_2.31"], [f"{ARCH}/libnss_files.so.2", f"{ARCH}/libnss_dns.so.2"]),
    ],
    ids=["2.34 has them inside", "2.31 opens them"],
)
def test_nss_modules_come_along_only_for_old_glibcs(
    host: Path, libc_names: list[str], expected: list[str]
) -> None:
    put(host, f"/usr{ARCH}/libc.so.6", library("libc.so.6", names=libc_names))
    for module in ("libnss_files.so.2", "libnss_dns.so.2", "libnss_systemd.so.2"):
        put(host, f"/usr{ARCH}/{module}", library(module, "libc.so.6"))
    put(host, "/usr/bin/id", program("libc.so.6", names=["getpwuid"]), 0o755)
    assert objects(host, "/usr/bin/id")[3:] == expected


# Symlinks, scripts, directories.


def test_every_symlink_on_the_way_is_kept(host: Path) -> None:
    put(host, "/usr/bin/mawk", program("libc.so.6"), 0o755)
    link(host, "/etc/alternatives/awk", "/usr/bin/mawk")
    link(host, "/usr/bin/awk", "/etc/alternatives/awk")
    base = collect(["/bin/awk"], host_root=host)
    assert links(base) == {
        "bin": "usr/bin",
        "sbin": "usr/sbin",
        "lib": "usr/lib",
        "lib64": "usr/lib64",
        "usr/bin/awk": "/etc/alternatives/awk",
        "etc/alternatives/awk": "/usr/bin/mawk",
        "usr/lib64/ld-linux-x86-64.so.2": "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    }
    assert [name for name in paths(base, "file") if not name.startswith("etc/")] == [
        "usr/bin/mawk",
        "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
    ]


def test_a_host_without_merged_usr_stays_so(tmp_path: Path) -> None:
    put(tmp_path, "/lib64/ld-linux-x86-64.so.2", loader(), 0o755)
    put(tmp_path, "/lib/x86_64-linux-gnu/libc.so.6", library("libc.so.6"))
    put(tmp_path, "/bin/dash", program("libc.so.6"), 0o755)
    put(tmp_path, "/usr/bin/env", program("libc.so.6"), 0o755)
    link(tmp_path, "/bin/sh", "dash")
    (tmp_path / "sbin").mkdir()
    base = collect(["sh", "/usr/bin/env"], host_root=tmp_path)
    assert links(base) == {"bin/sh": "dash"}
    assert {"bin", "sbin", "lib", "lib64", "usr/bin"} <= set(paths(base, "directory"))
    assert [name for name in paths(base, "file") if not name.startswith("etc/")] == [
        "bin/dash",
        "lib/x86_64-linux-gnu/libc.so.6",
        "lib64/ld-linux-x86-64.so.2",
        "usr/bin/env",
    ]


def test_a_path_through_dots_names_what_the_kernel_would_open(host: Path) -> None:
    put(host, "/usr/lib/tool/run", program("libc.so.6"), 0o755)
    link(host, "/opt/tool", "../usr/lib/tool")
    base = collect(["/opt/./tool/../tool/run"], host_root=host)
    assert links(base)["opt/tool"] == "../usr/lib/tool"
    assert "usr/lib/tool/run" in paths(base, "file")


@pytest.mark.parametrize("target", ["loop", "/etc/../usr/bin/loop"])
def test_links_that_loop_lead_nowhere(host: Path, target: str) -> None:
    link(host, "/usr/bin/loop", target)
    with pytest.raises(HostError, match="there is no /usr/bin/loop on this host"):
        collect(["/usr/bin/loop"], host_root=host)


@pytest.mark.parametrize(
    "line",
    ["#!/usr/bin/env tool", "#! /usr/bin/env -S tool --flag", "#!/usr/bin/env -S A=1 tool"],
)
def test_a_script_brings_its_interpreter_and_what_env_runs(host: Path, line: str) -> None:
    put(host, "/usr/bin/env", program("libc.so.6"), 0o755)
    put(host, "/usr/bin/tool", program("libc.so.6"), 0o755)
    put(host, "/usr/local/bin/tool", program("libonly.so", runpath="/opt"), 0o755)
    put(host, "/opt/libonly.so", library("libonly.so"))
    put(host, "/srv/script", line + "\nbody\n", 0o755)
    found = paths(collect(["/srv/script"], host_root=host), "file")
    assert {"usr/bin/env", "usr/local/bin/tool", "opt/libonly.so", "srv/script"} <= set(found)
    assert "usr/bin/tool" not in found


def test_text_that_is_not_executable_is_no_script(host: Path) -> None:
    put(host, "/srv/script", "#!/usr/bin/nowhere\n", 0o644)
    assert "srv/script" in paths(collect(["/srv/script"], host_root=host), "file")


def test_a_script_without_its_interpreter_is_an_error(host: Path) -> None:
    put(host, "/srv/script", "#!/usr/bin/nowhere -x\n", 0o755)
    with pytest.raises(HostError) as caught:
        collect(["/srv/script"], host_root=host)
    assert caught.value.brief == "/srv/script needs /usr/bin/nowhere, which is not on this host"


def test_a_directory_comes_with_the_libraries_of_what_is_in_it(host: Path) -> None:
    put(host, "/opt/app/bin/run", program("libplugin.so", runpath="$ORIGIN/../lib"), 0o755)
    put(host, "/opt/app/lib/libplugin.so", library("libplugin.so", "libsystem.so"))
    put(host, "/opt/app/lib/libalone.so", library("libalone.so", "libplugin.so"))
    put(host, "/usr/lib/libsystem.so", library("libsystem.so"))
    put(host, "/opt/app/data/broken.so", library("broken.so", "libgone.so"))
    put(host, "/usr/share/data", "x")
    link(host, "/opt/app/data/outside", "/usr/share/data")
    link(host, "/opt/app/data/dangling", "nowhere")
    link(host, "/opt/app/data/usr", "/usr/share")
    os.mkfifo(host / "opt/app/pipe")
    base = collect(["/opt/app"], host_root=host)
    assert {"opt/app/lib/libalone.so", "usr/lib/libsystem.so", "usr/share/data"} <= set(
        paths(base, "file")
    )
    assert links(base)["opt/app/data/dangling"] == "nowhere"
    assert base.warnings == (
        "/opt/app/pipe is a named pipe: left out",
        "/opt/app/data/usr leads to /usr/share, a directory outside: name it as a piece too if it"
        " is needed",
        "/opt/app/data/broken.so needs libgone.so, which is not on this host:"
        " /opt/app/data/broken.so is kept, but will not run",
    )


# Modes, skeleton, order.


def test_modes_are_normal_and_setuid_is_gone(host: Path) -> None:
    put(host, "/usr/bin/su", program("libc.so.6"), 0o4755)
    put(host, "/srv/secret", "x", 0o640)
    (host / "srv").chmod(0o2770)
    base = collect(["/bin/su", "/srv/secret"], host_root=host)
    modes = {os.fsdecode(file.path): file.mode for file in base.files}
    assert modes["usr/bin/su"] == 0o755
    assert modes["srv/secret"] == 0o644
    assert modes["srv"] == 0o755
    assert (modes["tmp"], modes["var/tmp"], modes["root"]) == (0o1777, 0o1777, 0o700)


def test_the_skeleton_is_ours_and_not_the_hosts(host: Path) -> None:
    put(host, "/etc/passwd", "secret:x:1000:1000::/:/bin/sh\n")
    put(host, "/etc/nsswitch.conf", "passwd: files systemd\n")
    put(host, "/usr/bin/true", program("libc.so.6"), 0o755)
    base = collect(["/usr/bin/true"], host_root=host)
    contents = {os.fsdecode(f.path): f.content for f in base.files if f.content is not None}
    assert sorted(contents) == [
        "etc/group",
        "etc/hosts",
        "etc/nsswitch.conf",
        "etc/os-release",
        "etc/passwd",
    ]
    assert b"secret" not in contents["etc/passwd"]
    assert b"systemd" not in contents["etc/nsswitch.conf"]


def test_a_named_file_of_the_host_replaces_the_skeletons(host: Path) -> None:
    put(host, "/etc/passwd", "me:x:1000:1000::/:/bin/sh\n")
    base = collect(["/etc/passwd"], host_root=host)
    [passwd] = [file for file in base.files if file.path == b"etc/passwd"]
    assert passwd.source == host / "etc/passwd"


def test_files_are_sorted_and_every_parent_is_there(host: Path) -> None:
    put(host, "/opt/a/b/c", "x")
    base = collect(["/opt/a/b/c"], host_root=host)
    names = [file.path for file in base.files]
    assert names == sorted(names) and len(set(names)) == len(names)
    kinds = {file.path: file.kind for file in base.files}
    for name in names:
        parent = os.path.dirname(name)
        assert not parent or kinds[parent] == "directory"


def test_the_locale_comes_with_glibc_and_sets_lang(host: Path) -> None:
    put(host, "/usr/lib/locale/C.utf8/LC_CTYPE", "x")
    put(host, "/usr/bin/static", fake_elf(is_dynamic=False, kind=2), 0o755)
    put(host, "/usr/bin/dynamic", program("libc.so.6"), 0o755)
    assert "LANG" not in collect(["/usr/bin/static"], host_root=host).env
    base = collect(["/usr/bin/dynamic"], host_root=host)
    assert base.env["LANG"] == "C.UTF-8"
    assert "usr/lib/locale/C.utf8/LC_CTYPE" in paths(base, "file")


# Pieces.

APPLETS = b"\0[\0[[\0ash\0cat\0ls\0sh\0vi\0\0"


def test_busybox_prefers_a_static_one_and_leaves_taken_names_alone(host: Path) -> None:
    put(host, "/usr/bin/busybox", program("libc.so.6", tail=APPLETS), 0o755)
    static = fake_elf(is_dynamic=False, kind=2, tail=b"noise\0cat\0\0" + APPLETS)
    put(host, "/usr/sbin/busybox", static, 0o755)
    put(host, "/usr/bin/ls", program("libc.so.6"), 0o755)
    base = collect(["busybox", "/bin/ls"], host_root=host)
    found = {name: to for name, to in links(base).items() if name.startswith("usr/bin/")}
    assert found == {
        f"usr/bin/{name}": "/usr/sbin/busybox" for name in ("[", "[[", "ash", "cat", "sh", "vi")
    }
    assert "usr/bin/busybox" not in paths(base, "file")


def test_a_busybox_without_a_table_still_gives_a_shell(host: Path) -> None:
    put(host, "/usr/bin/busybox", fake_elf(is_dynamic=False, kind=2), 0o755)
    base = collect(["busybox"], host_root=host)
    assert links(base)["usr/bin/sh"] == "busybox"
    assert base.warnings == ("/bin/busybox does not show its applets: only sh is linked to it",)


def test_coreutils_are_what_dpkg_lists(host: Path) -> None:
    listed = "/.\n/bin\n/bin/ls\n/usr/bin/env\n/usr/sbin/chroot\n/usr/share/doc/coreutils/NEWS.gz\n"
    put(host, "/var/lib/dpkg/info/coreutils.list", listed)
    for name in ("/usr/bin/ls", "/usr/bin/env", "/usr/sbin/chroot", "/usr/bin/cat"):
        put(host, name, program("libc.so.6"), 0o755)
    base = collect(["coreutils"], host_root=host)
    found = [name for name in paths(base, "file") if "bin/" in name]
    assert found == ["usr/bin/env", "usr/bin/ls", "usr/sbin/chroot"]
    assert owning_packages(base, host_root=host) == {
        b"usr/bin/env": "coreutils",
        b"usr/bin/ls": "coreutils",
        b"usr/sbin/chroot": "coreutils",
    }


def test_coreutils_without_dpkg_come_from_a_table(host: Path) -> None:
    for name in ("/usr/bin/ls", "/usr/bin/cat", "/usr/bin/grep"):
        put(host, name, program("libc.so.6"), 0o755)
    base = collect(["coreutils"], host_root=host)
    assert [name for name in paths(base, "file") if "bin/" in name] == ["usr/bin/cat", "usr/bin/ls"]
    assert owning_packages(base, host_root=host) == {}


def python_at(host: Path, prefix: str, version: str = "3.11") -> None:
    put(host, f"{prefix}/bin/python{version}", program("libc.so.6"), 0o755)
    link(host, f"{prefix}/bin/python3", f"python{version}")
    kept = ("os.py", "json/__init__.py")
    left_out = ("test/test_os.py", "turtle.py", "ctypes/test/x.py", "__pycache__/os.pyc")
    for name in (*kept, *left_out, "site-packages/pip/__init__.py", "config-3.11/libpy.a"):
        put(host, f"{prefix}/lib/python{version}/{name}", "x")
    dynload = f"{prefix}/lib/python{version}/lib-dynload"
    put(host, f"{dynload}/_ssl.so", fake_elf(needed=["libssl.so.3"]))
    put(host, f"{dynload}/_testcapi.so", fake_elf(needed=["libgone.so"]))
    put(host, f"/usr{ARCH}/libssl.so.3", library("libssl.so.3", "libc.so.6"))


STDLIB = ["json/__init__.py", "lib-dynload/_ssl.so", "os.py"]


def stdlib_in(base: HostBase, stdlib: str) -> list[str]:
    return [name[len(stdlib) :] for name in paths(base, "file") if name.startswith(stdlib)]


def test_python_comes_with_its_standard_library_and_the_closure_of_its_modules(host: Path) -> None:
    python_at(host, "/usr")
    base = collect(["python3"], host_root=host)
    assert stdlib_in(base, "usr/lib/python3.11/") == STDLIB
    assert links(base)["usr/bin/python3"] == "python3.11"
    assert f"usr{ARCH}/libssl.so.3" in paths(base, "file")
    assert base.warnings == ()


def test_a_script_for_python_brings_the_standard_library(host: Path) -> None:
    python_at(host, "/usr")
    put(host, "/usr/bin/env", program("libc.so.6"), 0o755)
    put(host, "/srv/tool", "#!/usr/bin/env python3\n", 0o755)
    base = collect(["/srv/tool"], host_root=host)
    assert stdlib_in(base, "usr/lib/python3.11/") == STDLIB


@pytest.mark.parametrize("is_copy", [False, True], ids=["linked", "copied"])
def test_a_virtual_environments_python_brings_its_base_prefix(host: Path, is_copy: bool) -> None:
    python_at(host, "/home/me/.pyenv/versions/3.11.7")
    home = "/home/me/.pyenv/versions/3.11.7/bin"
    put(host, "/venv/pyvenv.cfg", f"home = {home}\nversion = 3.11.7\n")
    if is_copy:
        put(host, "/venv/bin/python3", program("libc.so.6"), 0o755)
    else:
        link(host, "/venv/bin/python3", f"{home}/python3")
    base = collect(["/venv/bin/python3"], host_root=host)
    assert stdlib_in(base, "home/me/.pyenv/versions/3.11.7/lib/python3.11/") == STDLIB
    assert {"venv/pyvenv.cfg", "home/me/.pyenv/versions/3.11.7/bin/python3.11"} <= set(
        paths(base, "file")
    )


def test_without_a_distributions_python_the_running_one_is_linked(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_at(host, "/opt/py")
    monkeypatch.setattr("sys.executable", "/opt/py/bin/python3")
    base = collect(["python3"], host_root=host)
    assert stdlib_in(base, "opt/py/lib/python3.11/") == STDLIB
    assert links(base)["usr/local/bin/python3"] == "/opt/py/bin/python3.11"


def test_certificates_bring_the_files_behind_their_links(host: Path) -> None:
    put(host, "/usr/share/ca/one.crt", "x")
    link(host, "/etc/ssl/certs/one.pem", "/usr/share/ca/one.crt")
    link(host, "/etc/ssl/certs/0a1b.0", "one.pem")
    link(host, "/usr/lib/ssl/certs", "/etc/ssl/certs")
    base = collect(["ca-certificates"], host_root=host)
    assert "usr/share/ca/one.crt" in paths(base, "file")
    assert links(base)["usr/lib/ssl/certs"] == "/etc/ssl/certs"


def test_time_zones_leave_their_copies_out(host: Path) -> None:
    for name in ("Etc/UTC", "posix/Etc/UTC", "right/Etc/UTC"):
        put(host, f"/usr/share/zoneinfo/{name}", "TZif")
    found = paths(collect(["tzdata"], host_root=host), "file")
    assert [name for name in found if "zoneinfo" in name] == ["usr/share/zoneinfo/Etc/UTC"]


# Errors.

KNOWN = "busybox, sh, bash, coreutils, python3, ca-certificates, tzdata"


@pytest.mark.parametrize(
    ("pieces", "brief", "hint"),
    [
        ([], "a host base of no pieces", f"name some of: {KNOWN}"),
        (
            ["pyton3"],
            "'pyton3' is not a piece of a host base",
            f"did you mean 'python3'? known pieces: {KNOWN}, or any absolute path",
        ),
        (
            ["git"],
            "'git' is not a piece of a host base",
            f"write the program's path: /usr/bin/git; known pieces: {KNOWN}, or any absolute path",
        ),
        (
            ["../x"],
            "'../x' is not a piece of a host base",
            f"known pieces: {KNOWN}, or any absolute path",
        ),
        (["/"], "/ is no piece of a host base", "name programs or a directory of files"),
        (
            ["/proc/1"],
            "/proc/1 is no piece of a host base",
            "name programs or a directory of files",
        ),
        (
            ["/run/socket"],
            "/run/socket is a named pipe",
            "name files and directories only: an image has no use for it",
        ),
        (
            ["/pyenv/shims/python3"],
            "/pyenv/shims/python3 is a pyenv shim, not a program",
            "name the program itself: /pyenv/versions/3.11.7/bin/python3",
        ),
    ],
)
def test_wrong_pieces_say_what_to_write(
    host: Path, pieces: list[str], brief: str, hint: str
) -> None:
    put(host, "/usr/bin/git", program("libc.so.6"), 0o755)
    put(host, "/proc/1", "")
    put(host, "/pyenv/shims/python3", "#!/bin/bash\n", 0o755)
    python_at(host, "/pyenv/versions/3.11.7")
    (host / "run").mkdir()
    os.mkfifo(host / "run/socket")
    with pytest.raises(UsageError) as caught:
        collect(pieces, host_root=host)
    assert (caught.value.brief, caught.value.hint) == (brief, hint)


@pytest.mark.parametrize(
    ("piece", "hint"),
    [
        ("busybox", "apt-get install busybox-static, or apk add busybox-static"),
        ("bash", "install bash"),
        ("coreutils", "install coreutils"),
        ("ca-certificates", "install ca-certificates"),
        ("tzdata", "install tzdata"),
        ("/usr/bin/gone", "correct the path or install it"),
    ],
)
def test_pieces_that_this_host_lacks_say_what_to_install(host: Path, piece: str, hint: str) -> None:
    with pytest.raises(HostError) as caught:
        collect([piece], host_root=host)
    assert caught.value.hint == hint
