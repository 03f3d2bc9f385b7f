"""What a right spec means, value by value."""

from __future__ import annotations

import pytest

from layerstore.names import Digest, ImageRef
from layerstore.spec import (
    KEEP,
    NORMAL,
    ROOT,
    ArchiveBase,
    AttrsStep,
    Base,
    BindMount,
    CacheMount,
    Command,
    Config,
    CopyStep,
    DebianBase,
    ExtractStep,
    FileTest,
    Healthcheck,
    HostBase,
    ImageBase,
    ImageSpec,
    Label,
    MkdirStep,
    Mode,
    OciBase,
    Output,
    Owner,
    Position,
    RemoveStep,
    RootfsBase,
    RunStep,
    RunTest,
    ScratchBase,
    SecretMount,
    SizeTest,
    Source,
    SpecError,
    SshMount,
    StageBase,
    Step,
    SymlinkStep,
    TmpfsMount,
    UseStep,
    WriteStep,
    parse,
    parse_fragment,
    splice,
)

AT = Position("spec.yaml", 0, 0)
"""Any position: values compare without it."""


def of(text: str, **overrides: str) -> ImageSpec:
    return parse(text.encode(), filename="dir/spec.yaml", overrides=overrides)


def step(text: str) -> Step:
    (found,) = of(f"layerstore: 1\nfrom: scratch\nsteps:\n- {text}").stages[0].steps
    return found


def mistakes(text: str, **overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        of(text, **overrides)
    return [f"{found.line}:{found.column} {found.message}" for found in caught.value.diagnostics]


D = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("scratch", ScratchBase()),
        ("{host: [sh, /usr/bin/jq]}", HostBase(("sh", "/usr/bin/jq"))),
        ("{rootfs: ./a//b.tar}", RootfsBase(b"a/b.tar", None)),
        (f"{{rootfs: r, sha256: {D}}}", RootfsBase(b"r", Digest(f"sha256:{D}"))),
        (f"{{archive: a, sha256: 'sha256:{D}'}}", ArchiveBase(b"a", Digest(f"sha256:{D}"))),
        ("{oci: layout/}", OciBase(b"layout")),
        ("{debian: bookworm}", DebianBase("bookworm")),
        (
            "{debian: {suite: sid, variant: buildd, packages: [gcc-12], mirror: 'file:///m'}}",
            DebianBase("sid", "buildd", ("gcc-12",), "file:///m"),
        ),
        ("{image: base}", ImageBase(ImageRef("base", "latest"))),
        ("{image: 'acme/base:1.0'}", ImageBase(ImageRef("acme/base", "1.0"))),
    ],
)
def test_a_base_is_one_of_eight(text: str, base: Base) -> None:
    assert of(f"layerstore: 1\nfrom: {text}").stages[0].base == base


def test_the_last_stage_may_build_on_an_earlier_one() -> None:
    spec = of("layerstore: 1\nstages: {a: {from: scratch}, b: {from: {stage: a}}}")
    assert [(stage.name, stage.base) for stage in spec.stages] == [
        ("a", ScratchBase()),
        ("b", StageBase("a")),
    ]
    assert spec.stage("a") is spec.stages[0]
    assert spec.stage("c") is None


def test_a_spec_of_one_stage_has_its_keys_at_the_top() -> None:
    spec = of("layerstore: 1\nname: a/b:c\nfrom: scratch\nignore: []")
    assert (spec.name, spec.ignore) == (ImageRef("a/b", "c"), ())
    assert [(stage.name, stage.steps, stage.config) for stage in spec.stages] == [
        ("image", (), Config())
    ]


@pytest.mark.parametrize(
    ("text", "expected", "title"),
    [
        ("run: make", RunStep(position=AT, command=Command("make")), "run make"),
        ("run: [a, 'b c']", RunStep(position=AT, command=Command(None, ("a", "b c"))), "run a b c"),
        (
            "{run: '${x} $$ $${y}', env: {A: 1, B: ''}, network: host, user: app, workdir: /w/,"
            " layer: l, name: do it}",
            RunStep(
                position=AT, name="do it", layer="l", command=Command("${x} $$ $${y}"),
                env=(("A", "1"), ("B", "")), network="host", user="app", workdir=b"w",
            ),
            "do it",
        ),
        (
            "copy: {src: a, to: /b}",
            CopyStep(
                position=AT, sources=(Source(b"a"),), to=b"b", into=False, owner=ROOT, mode=NORMAL
            ),
            "copy a → /b",
        ),
        (
            "copy: {src: [a/, ./b], to: /c/, owner: '1:2', mode: '0600'}",
            CopyStep(
                position=AT, sources=(Source(b"a", True), Source(b"b")), to=b"c", into=True,
                owner=Owner(1, 2), mode=Mode("0600", 0o600),
            ),
            "copy a/ b → /c/",
        ),
        (
            "copy: {src: ., to: /, mode: keep}",
            CopyStep(position=AT, sources=(Source(b".", True),), to=b"", into=True, mode=KEEP),
            "copy ./ → /",
        ),
        (
            "write: {to: /etc//./motd, text: ''}",
            WriteStep(position=AT, to=b"etc/motd", text=""),
            "write /etc/motd",
        ),
        ("mkdir: /a/b/", MkdirStep(position=AT, path=b"a/b"), "mkdir /a/b"),
        (
            "mkdir: {path: /é, owner: app, mode: '01777'}",
            MkdirStep(
                position=AT, path="é".encode(), owner=Owner("app", None), mode=Mode("01777", 0o1777)
            ),
            "mkdir /é",
        ),
        (
            "symlink: {path: /a, target: ../b}",
            SymlinkStep(position=AT, path=b"a", target=b"../b"),
            "symlink /a → ../b",
        ),
        ("remove: /a", RemoveStep(position=AT, paths=(b"a",)), "remove /a"),
        ("remove: [/a, /b/c]", RemoveStep(position=AT, paths=(b"a", b"b/c")), "remove /a /b/c"),
        (
            "extract: {src: a.tgz, to: /}",
            ExtractStep(position=AT, source=b"a.tgz", to=b""),
            "extract a.tgz → /",
        ),
        (
            "attrs: {path: /a, mtime: '2001-09-09T01:46:40Z', recursive: true,"
            " xattrs: {user.z: hi, user.a: 0x00ff}}",
            AttrsStep(
                position=AT, paths=(b"a",), mtime=1_000_000_000, recursive=True,
                xattrs=((b"user.a", b"\x00\xff"), (b"user.z", b"hi")),
            ),
            "attrs /a",
        ),
        (
            "attrs: {path: [/a], mtime: 17}",
            AttrsStep(position=AT, paths=(b"a",), mtime=17),
            "attrs /a",
        ),
        ("use: a.yaml", UseStep(position=AT, file=b"a.yaml"), "use a.yaml"),
        (
            "use: {file: a.yaml, vars: {x: 1}}",
            UseStep(position=AT, file=b"a.yaml", variables=(("x", "1"),)),
            "use a.yaml",
        ),
    ],
)  # fmt: skip
def test_a_step_is_its_verb(text: str, expected: Step, title: str) -> None:
    found = step(text)
    assert found == expected
    assert found.title == title


def test_copying_from_a_stage_takes_absolute_paths_and_keeps_owners_and_modes() -> None:
    spec = of(
        "layerstore: 1\nstages:\n  a: {from: scratch}\n"
        "  b: {from: scratch, steps: [{copy: {from: a, src: [/, /x], to: /}}]}"
    )
    assert spec.stages[1].steps == (
        CopyStep(
            position=AT, stage="a", sources=(Source(b"", True), Source(b"x")), to=b"", into=True,
            owner=None, mode=KEEP,
        ),
    )  # fmt: skip
    assert spec.stages[1].steps[0].title == "copy a:// a:/x → /"


def test_mounts_are_one_of_five() -> None:
    found = step(
        "{run: x, mounts: [{bind: ./a, to: /a}, {cache: c, to: /c}, {secret: s, to: /s},"
        " {ssh: default, to: /h}, {tmpfs: 4MiB, to: /t}]}"
    )
    assert isinstance(found, RunStep)
    assert found.mounts == (
        BindMount(b"a", AT, b"a"),
        CacheMount(b"c", AT, "c"),
        SecretMount(b"s", AT, "s"),
        SshMount(b"h", AT, "default"),
        TmpfsMount(b"t", AT, 4 << 20),
    )


def test_a_config_has_the_forms_of_oci() -> None:
    spec = of("""\
layerstore: 1
from: scratch
config:
  entrypoint: []
  cmd: [a, ""]
  env: {B: 1, A: "x=y"}
  user: app:www
  workdir: /srv/
  labels: {a: yes, b: {run: cat /v}, c: {run: [x, y]}}
  expose: [080, 53/udp]
  volumes: [/data/]
  stopsignal: TERM
  healthcheck: {run: x, interval: 1m30s, timeout: 500ms, start_period: 1.5s, retries: 3}
""")
    assert spec.stages[0].config == Config(
        entrypoint=(),
        cmd=("a", ""),
        env=(("B", "1"), ("A", "x=y")),
        user="app:www",
        workdir="/srv",
        labels=(
            Label("a", "yes"),
            Label("b", Command("cat /v")),
            Label("c", Command(None, ("x", "y"))),
        ),
        expose=("80/tcp", "53/udp"),
        volumes=("/data",),
        stopsignal="SIGTERM",
        healthcheck=Healthcheck(Command("x"), 90.0, 0.5, 1.5, 3),
    )


@pytest.mark.parametrize(
    ("text", "signal"), [("SIGKILL", "SIGKILL"), ("9", "9"), ("SIGRTMIN+3", "SIGRTMIN+3")]
)
def test_a_stop_signal_is_a_name_or_a_number(text: str, signal: str) -> None:
    spec = of(f"layerstore: 1\nfrom: scratch\nconfig: {{stopsignal: {text}, healthcheck: none}}")
    assert spec.stages[0].config == Config(stopsignal=signal, healthcheck=Healthcheck(None))


def test_tests_and_outputs_are_parsed_in_full() -> None:
    spec = of("""\
layerstore: 1
from: scratch
tests:
  - run: test -f /x
  - {file: /x, mode: "0644"}
  - file: /y
  - size: <=1.5 GiB
outputs: [{oci: dist/a}, {docker: a.tar}]
""")
    assert spec.stages[0].tests == (
        RunTest(AT, Command("test -f /x")),
        FileTest(AT, b"x", 0o644),
        FileTest(AT, b"y", None),
        SizeTest(AT, 3 << 29),
    )
    assert spec.outputs == (Output("oci", b"dist/a", AT), Output("docker", b"a.tar", AT))


def test_every_scalar_is_the_text_that_it_is() -> None:
    found = step("{run: x, env: {A: yes, B: 010, C: 1.10, D: 2024-01-31, E: null, F: ~, G: 1_0}}")
    assert isinstance(found, RunStep)
    assert [value for _, value in found.env] == [
        "yes", "010", "1.10", "2024-01-31", "null", "~", "1_0",
    ]  # fmt: skip


def test_a_script_runs_in_a_strict_shell_and_words_run_as_they_are() -> None:
    assert Command("a\nb").argv == ("/bin/sh", "-euc", "a\nb")
    assert Command(None, ("a", "b")).argv == ("a", "b")
    assert str(Command("\n  a b\nc\n")) == "a b …"


def test_positions_name_the_file_and_the_line() -> None:
    spec = of("layerstore: 1\nfrom:\n  host: [sh]\nsteps:\n  - name: x\n    run: y\n")
    stage = spec.stages[0]
    assert str(stage.steps[0].position) == "dir/spec.yaml:5"
    assert stage.steps[0].position == Position("dir/spec.yaml", 5, 5)
    assert stage.base_position == Position("dir/spec.yaml", 3, 3)


def test_an_alias_stands_for_what_it_names() -> None:
    spec = of(
        "layerstore: 1\nfrom: scratch\nsteps:\n- {run: a, env: &e {A: 1}}\n- {run: b, env: *e}\n"
    )
    assert [getattr(step, "env", None) for step in spec.stages[0].steps] == [(("A", "1"),)] * 2


# Variables


def test_variables_are_expanded_in_values_and_overridden_by_set() -> None:
    text = (
        "layerstore: 1\nname: 'x:${tag}'\nvars: {v: 1, tag: 'v${v}', need: }\nfrom: scratch\n"
        "steps: [{write: {to: '/${tag}', text: 'a ${v} $${v} $v $$ ${need}'}}]\n"
    )
    spec = of(text, v="2", need="${v}")
    assert spec.name == ImageRef("x", "v2")
    assert spec.variables == (("v", "2"), ("tag", "v2"), ("need", "${v}"))
    (write,) = spec.stages[0].steps
    assert write == WriteStep(position=AT, to=b"v2", text="a 2 ${v} $v $$ ${v}")


def test_scripts_are_never_expanded_but_words_are() -> None:
    text = (
        "layerstore: 1\nvars: {a: A}\nfrom: scratch\n"
        "steps: [{run: 'echo ${a}'}, {run: [echo, '${a}']}]"
    )
    assert [str(getattr(step, "command", None)) for step in of(text).stages[0].steps] == [
        "echo ${a}",
        "echo A",
    ]


@pytest.mark.parametrize(
    ("line", "overrides", "expected"),
    [
        ("name: '${x}'", {}, ['3:8 undefined variable "x"']),
        ("name: '${x'", {}, ['3:8 "${x" is not a variable']),
        ("vars: {a: '${b}', b: 1}", {}, ['3:12 undefined variable "b"']),
        ("vars: {a: '${b}', b: 1}\nname: '${a}'", {}, ['3:12 undefined variable "b"']),
        ("vars: {a: }\nname: '${a}'", {}, ['3:8 the variable "a" has no value']),
        ("vars: {a: 1}", {"b": "1"}, ['0:0 --set: "b" is not declared in vars']),
        (
            "vars: {a: 1}",
            {"a": "\udcff"},
            ['0:0 --set: the value of "a" is not UTF-8 text'],
        ),
        ("vars: {a-b: 1}", {}, ['3:8 "a-b" is not the name of a variable']),
        ("vars: [a]", {}, ["3:7 expected a mapping, got a list"]),
    ],
)
def test_a_mistake_with_a_variable_is_one_error(
    line: str, overrides: dict[str, str], expected: list[str]
) -> None:
    assert mistakes(f"layerstore: 1\nfrom: scratch\n{line}", **overrides) == expected


def test_every_undefined_variable_of_a_block_has_its_own_place() -> None:
    text = (
        "layerstore: 1\nfrom: scratch\nsteps:\n"
        "- write:\n    to: /x\n    text: |\n      a ${x}\n      ${x} ${y}\n"
    )
    assert mistakes(text) == [
        '7:9 undefined variable "x"',
        '8:7 undefined variable "x"',
        '8:12 undefined variable "y"',
    ]


def test_variables_that_double_each_other_are_bounded() -> None:
    lines = ["layerstore: 1", "from: scratch", "vars:", "  a0: xxxxxxxxxx"]
    lines += [f"  a{n + 1}: ${{a{n}}}${{a{n}}}" for n in range(60)]
    assert mistakes("\n".join(lines)) == [
        "21:8 1310720 characters with its variables written out",
    ]


# The text itself


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", 's:1:1: error: the file is empty; start it with "layerstore: 1"'),
        (b"a: \xff", "s:1:4: error: the byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"a: 1\nb: \xc3(", "s:2:4: error: the byte 0xc3 is not UTF-8; save the file as UTF-8"),
        (
            b"\xef\xbb\xbfa: \xff",
            "s:1:4: error: the byte 0xff is not UTF-8; save the file as UTF-8",
        ),
        (
            "layerstore: 1".encode("utf-16"),
            "s:1:1: error: the byte 0xff is not UTF-8; save the file as UTF-8",
        ),
        (b"x" * 1048577, "s: error: the file has 1048577 bytes, and a spec has at most 1048576"),
        (b"a: " + b"[" * 400, "s:1:44: error: nested deeper than 40 levels"),
        (
            b"a:\x1b",
            "s:1:3: error: control character U+001B; write it as an escape inside double quotes,"
            ' such as "\\x1b"',
        ),
        (b'a: "\\0"', "s:1:4: error: a value cannot hold NUL or half of a surrogate pair"),
    ],
    ids=[
        "empty",
        "not-utf-8",
        "not-utf-8-below",
        "bom",
        "utf-16",
        "large",
        "deep",
        "control",
        "nul",
    ],
)
def test_text_that_is_no_spec_is_refused_with_its_place(raw: bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(raw, filename="s")
    assert str(caught.value).splitlines()[0] == message


def test_the_deepest_nesting_is_refused_in_the_same_words() -> None:
    (message,) = mistakes("a: " + "[" * 100_000)
    assert message.endswith("nested deeper than 40 levels")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    raw = b"\xef\xbb\xbflayerstore: 1\r\nfrom: scratch\r\nsteps:\r\n- run: |\r\n    a\r\n    b\r\n"
    (run,) = parse(raw, filename="s").stages[0].steps
    assert run == RunStep(position=AT, command=Command("a\nb\n"))


def test_aliases_that_double_each_other_are_bounded() -> None:
    lines = ["layerstore: 1", "x0: &x0 [a]"]
    lines += [f"x{n + 1}: &x{n + 1} [*x{n}, *x{n}]" for n in range(60)]
    (message,) = mistakes("\n".join(lines))
    assert message.endswith("more than 50000 values, aliases written out")


def test_a_mistake_behind_an_alias_counts_once() -> None:
    assert mistakes(
        "layerstore: 1\nfrom: scratch\nsteps: [{run: a, env: &e [x]}, {run: b, env: *e}]"
    ) == ["3:23 expected a mapping, got a list"]


def test_after_a_hundred_mistakes_the_file_is_read_no_further() -> None:
    steps = "\n".join("- rnu: x" for _ in range(500))
    assert len(mistakes(f"layerstore: 1\nfrom: scratch\nsteps:\n{steps}")) == 100


# Fragments


def use(text: str) -> UseStep:
    found = step(text)
    assert isinstance(found, UseStep)
    return found


def test_a_fragment_sees_only_its_own_variables() -> None:
    fragment = parse_fragment(
        b"layerstore: 1\nvars: {a: , b: 2}\nsteps: [{mkdir: '/${a}${b}'}]",
        filename="f.yaml",
        step=use("use: {file: f.yaml, vars: {a: 1}}"),
    )
    assert fragment.steps == (MkdirStep(position=AT, path=b"12"),)
    assert fragment.variables == (("a", "1"), ("b", "2"))


def test_a_wrong_use_of_a_fragment_names_both_places() -> None:
    with pytest.raises(SpecError) as caught:
        parse_fragment(
            b"layerstore: 1\nvars: {a: }\nsteps: [{mkdir: '/${a}'}]",
            filename="f.yaml",
            step=use("use: {file: f.yaml, vars: {aa: 1}}"),
        )
    assert str(caught.value).splitlines() == [
        'f.yaml: error: the use step at dir/spec.yaml:4: "aa" is not declared in vars;'
        ' did you mean "a"?',
        'f.yaml:2:8: error: the variable "a" has no value in vars; give it one in vars, or with'
        " the use step at dir/spec.yaml:4",
        "2 | vars: {a: }",
        "  |        ^",
    ]


FILES = {
    b"a.yaml": b"layerstore: 1\nsteps: [{mkdir: /a}, {use: sub/b.yaml}]",
    b"sub/b.yaml": b"layerstore: 1\nsteps: [{mkdir: /b, layer: own}]",
    b"loop.yaml": b"layerstore: 1\nsteps: [{use: loop.yaml}]",
}


def test_splicing_puts_the_steps_of_files_in_place_and_hands_down_the_layer() -> None:
    spec = of(
        "layerstore: 1\nfrom: scratch\nsteps: [{mkdir: /0}, {use: a.yaml, layer: l}, {mkdir: /9}]"
    )
    assert [found.file for found in spec.uses()] == [b"a.yaml"]
    spliced = splice(spec, lambda step: FILES[step.file])
    assert spliced.stages[0].steps == (
        MkdirStep(position=AT, path=b"0"),
        MkdirStep(position=AT, path=b"a", layer="l"),
        MkdirStep(position=AT, path=b"b", layer="own"),
        MkdirStep(position=AT, path=b"9"),
    )
    assert str(spliced.stages[0].steps[2].position) == "dir/sub/b.yaml:2"
    assert list(spliced.uses()) == []


def test_a_file_that_uses_itself_is_an_error_with_its_place() -> None:
    spec = of("layerstore: 1\nfrom: scratch\nsteps: [{use: loop.yaml}]")
    with pytest.raises(SpecError, match=r'^dir/loop.yaml:2:9: error: "loop.yaml" uses itself$'):
        splice(spec, lambda step: FILES[step.file])


def test_files_that_double_each_other_are_bounded() -> None:
    def read(step: UseStep) -> bytes:
        n = int(step.file)
        what = "{mkdir: /x}, {mkdir: /x}" if n == 0 else f"{{use: '{n - 1}'}}, {{use: '{n - 1}'}}"
        return f"layerstore: 1\nsteps: [{what}]".encode()

    spec = of("layerstore: 1\nfrom: scratch\nsteps: [{use: '13'}]")
    with pytest.raises(SpecError, match="more than 10000 steps in one stage"):
        splice(spec, read)
