"""The commands that need no container, called as the console script calls them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_reference import PAGE, page
from storekit import du, put_container, put_image

from layerstore.cli.app import main, split
from layerstore.store.store import Store

Call = Callable[..., tuple[int, str, str]]

SPEC = """\
layerstore: 1
name: built
from: scratch
steps:
  - write: {to: /a, text: "one\\n"}
  - symlink: {path: /b, target: a}
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def call(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """Runs a command line on the store; its exit code and what it wrote."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["--root", str(tmp_path / "store"), *words])
        written = capfdbinary.readouterr()
        return code, written.out.decode(), written.err.decode()

    return run


def said(result: tuple[int, str, str]) -> str:
    """Standard output of a command that succeeded and had nothing else to say."""
    code, out, err = result
    assert (code, err) == (0, "")
    return out


def document(result: tuple[int, str, str]) -> Any:  # Any: JSON
    return json.loads(said(result))


def test_the_page_on_the_command_line_says_what_the_commands_say() -> None:
    assert PAGE.read_text() == page(), "run: python tests/cli_reference.py"


@pytest.mark.parametrize(
    ("words", "given", "rest"),
    [
        (["--root", "/s", "ps"], {"--root": "/s"}, ["ps"]),
        (["--driver=stacked", "--root=/s", "run", "--root"],
         {"--driver": "stacked", "--root": "/s"}, ["run", "--root"]),
        (["ps", "--root", "/s"], {}, ["ps", "--root", "/s"]),
        (["--root"], {}, ["--root"]),
        (["--nope", "--root", "/s"], {}, ["--nope", "--root", "/s"]),
        ([], {}, []),
    ],
    ids=["two words", "equals", "after the command", "no value", "unknown first", "nothing"],
)  # fmt: skip
def test_global_options_stand_before_the_command(
    words: list[str], given: dict[str, str], rest: list[str]
) -> None:
    assert split(words) == (given, rest)


def test_help_names_every_command(call: Call) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    listed = out.partition("Commands:\n")[2].split("\n")
    assert {line.split()[0] for line in listed if line} == {
        "build", "plan", "run", "ps", "rm", "images", "inspect", "history", "import", "load",
        "save", "tag", "rmi", "diff", "commit", "mount", "umount", "df", "gc", "fsck", "doctor",
        "layer", "exec", "logs", "stop", "kill", "create", "start", "restart", "wait", "attach",
        "pause", "unpause", "top", "stats", "cp",
    }  # fmt: skip
    assert call() == (code, out, err)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("imags",), 2, "layerstore: no such command 'imags'"),
        (("images", "--nope"), 2, "layerstore: no such option: --nope"),
        (("tag", "one"), 2, "layerstore: missing argument 'NAME'"),
        (("layer",), 2, "layerstore: missing command"),
        (("run",), 125, "layerstore: IMAGE is missing"),
        (("run", "nope"), 125, "layerstore: there is no image 'nope' in this store"),
        (("rm", "nope"), 1, "layerstore: there is no container 'nope'"),
        (("inspect", "nope"), 1, "layerstore: there is no image 'nope'"),
        (("tag", "nope", "Upper"), 2, "layerstore: 'Upper' is not an image name"),
        (("save", "x", "y", "--format", "zip"), 2, "layerstore: --format 'zip' is not there"),
        (("build", "/nope.yaml"), 1, "layerstore: cannot read the spec '/nope.yaml'"),
        (("build", "--set", "x"), 2, "layerstore: no spec is named"),
        (("build", "--progress", "x", "/"), 1, "layerstore: there is no spec in the directory"),
        (("umount", "/nope"), 1, "layerstore: layerstore has mounted nothing at /nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_gives_one_message_with_a_hint(
    words: tuple[str, ...], code: int, message: str, call: Call, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    got, out, err = call(*words)
    assert (got, out) == (code, "")
    assert err.startswith(message)
    assert err.split("\n")[1].startswith("hint: ")
    assert len(err.split("\n")) == 3


def test_an_image_is_built_listed_and_taken_apart(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    code, out, err = call("build")
    image_id = out.strip()
    assert code == 0
    assert err.split("\n")[0::2] == ["[1/2] write /a", "[2/2] symlink /b → a", ""]
    assert call("build", "--explain")[1:] == (
        out, "[1/2] write /a  cached\n[2/2] symlink /b → a  cached\n",
    )  # fmt: skip
    assert call("build", "--progress", "quiet", "-t", "again:1") == (0, out, "")
    assert call("images", "-q") == (0, out, "")
    listed = document(call("images", "--json"))
    assert [item["name"] for item in listed] == ["again:1", "built:latest"]
    shown = document(call("inspect", "built"))
    assert shown["image_id"] == image_id
    assert shown["config"]["os"] == "linux"
    assert {key: listed[1][key] for key in ("image_id", "chain_id", "apparent", "stored")} == {
        "image_id": image_id, "chain_id": shown["chain_id"], "apparent": 5, "stored": 4,
    }  # fmt: skip
    steps = document(call("history", "built", "--json"))
    assert [(s["created_by"], s["diff_id"], s["added"]) for s in steps] == [
        ("write /a", shown["diff_ids"][0], 4), ("symlink /b → a", shown["diff_ids"][1], 0),
    ]  # fmt: skip


def test_json_progress_ends_with_the_error(call: Call, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC + "  - copy: {src: nope, to: /}\n")
    code, out, err = call("build", str(tmp_path), "--progress", "jsonl")
    events = [json.loads(line) for line in err.splitlines()]
    assert (code, out) == (events[-1]["exit_code"], "")
    assert events[0] == {
        "event": "step_started", "stage": "image", "index": 0, "total": 3, "title": "write /a",
        "action": "run", "reason": "it was never built here",
    }  # fmt: skip
    assert events[-1]["event"] == "error"
    assert "nope" in events[-1]["brief"]


def test_a_plan_writes_no_image(call: Call, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    decided = document(call("plan", str(tmp_path), "--json"))
    assert decided["runs"] == 2
    assert decided["steps"][0]["reason"] == "it was never built here"
    table = said(call("build", str(tmp_path), "--dry-run")).split("\n")
    assert table[0].split() == ["STEP", "ACTION", "WHAT", "WHY"]
    assert table[2].split("   ")[-1].strip() == "if an earlier step changes something"
    assert table[3] == "2 of 2 steps to run"
    assert document(call("images", "--json")) == []


def test_mistakes_of_a_spec_are_all_shown_as_they_are(call: Call, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("layerstore: 1\nnam: x\nfrom: scratch\nsteps:\n  - writ: {}\n")
    code, out, err = call("build", str(spec))
    assert (code, out) == (2, "")
    assert [line for line in err.split("\n") if "error" in line] == [
        f'{spec}:2:1: error: unknown key "nam"; did you mean "name"?',
        f'{spec}:5:5: error: unknown key "writ" in steps[0]; did you mean "write"?',
    ]


def test_a_layer_comes_back_bit_for_bit(call: Call, store: Store) -> None:
    put_image(store, "one", {"a": b"content", "b": b""})
    diff_id = document(call("inspect", "one"))["diff_ids"][0]
    tar = said(call("layer", "cat", diff_id[7:20])).encode()
    assert "sha256:" + hashlib.sha256(tar).hexdigest() == diff_id


def test_hostile_names_are_escaped_and_exact_in_json(call: Call, store: Store) -> None:
    with store.transaction() as transaction:
        from storekit import config_of

        from layerstore.formats.entries import Entry, Kind
        from layerstore.names import ImageRef
        from layerstore.store.layers import stage_entries

        entries = [
            Entry(b"bad\x1b[2J\xff", Kind.FILE, 0o4755, size=0),
            Entry(b"gone", Kind.WHITEOUT),
            Entry(b"link", Kind.SYMLINK, 0o777, uid=1000, gid=5, link=b"\xe2\x80\xae"),
        ]
        diff_id = stage_entries(transaction, entries).diff_id
        image_id = transaction.stage_image(config_of([diff_id]))
        transaction.publish({ImageRef.parse("evil"): image_id})
    lines = said(call("layer", "ls", diff_id)).splitlines()
    assert sorted(line.split()[-1] for line in lines) == ["/bad\\x1b[2J\\xff", "/gone", "\\u202e"]
    assert "-rwsr-xr-x         0:0          0 /bad\\x1b[2J\\xff" in lines
    assert "lrwxrwxrwx      1000:5          0 /link -> \\u202e" in lines
    found = {item["path"]: item for item in document(call("layer", "ls", diff_id, "--json"))}
    assert found["/bad\x1b[2J\\xff"] == {
        "path": "/bad\x1b[2J\\xff", "path_b64": "L2JhZBtbMkr/", "kind": "file", "mode": "4755",
        "uid": 0, "gid": 0, "mtime": "1970-01-01T00:00:00Z", "size": 0,
    }  # fmt: skip
    assert found["/gone"]["kind"] == "whiteout"


def test_two_images_are_compared(call: Call, store: Store) -> None:
    put_image(store, "old", {"a": b"1", "b": b"2"})
    put_image(store, "new", {"a": b"1!", "c": b"3"})
    assert said(call("diff", "old", "new")).splitlines() == ["D /b", "C /a", "A /c"]
    assert document(call("diff", "old", "old", "--json")) == []


def test_what_a_removal_promises_comes_back_to_the_byte(call: Call, store: Store) -> None:
    put_image(store, "keep", {"shared": b"x" * 10_000})
    put_image(store, "gone", {"shared": b"x" * 10_000}, {"own": b"y" * 50_000})
    said(call("tag", "gone", "gone:too"))
    df = document(call("df", "--json"))
    assert df["store"]["physical"] == du(store.layout.root)
    promised = document(call("rmi", "gone", "gone:too", "--dry-run", "--json"))
    assert document(call("df", "--json"))["images"] == df["images"]
    assert du(store.layout.root) == df["store"]["physical"]
    assert document(call("rmi", "gone", "gone:too", "--json")) == promised
    after = du(store.layout.root)
    assert df["store"]["physical"] - after == promised["freed"] > 50_000
    assert document(call("df", "--json"))["store"]["physical"] == after


def test_an_image_in_use_is_not_removed(call: Call, store: Store) -> None:
    image_id = put_image(store, "used", {"a": b"1"})
    put_container(store, "c1", "box", image_id)
    code, out, err = call("rmi", "used")
    assert (code, out) == (1, "")
    assert err == "layerstore: the container box uses the image image\nhint: remove it first: " \
        "layerstore rm box\n"  # fmt: skip
    assert [(c["name"], c["status"]) for c in document(call("ps", "-a", "--json"))] == [
        ("box", "created")
    ]
    assert document(call("ps", "--json")) == []
    assert call("rm", "nope", "box", "box") == (
        1, "box\n",
        "layerstore: there is no container 'nope'\nhint: layerstore ps -a lists the containers\n"
        "layerstore: there is no container 'box'\nhint: layerstore ps -a lists the containers\n",
    )  # fmt: skip
    assert said(call("rmi", "used")).startswith("untagged: used:latest\ndeleted: sha256:")


def test_what_is_saved_is_loaded(call: Call, store: Store, tmp_path: Path) -> None:
    image_id = put_image(store, "one", {"a": b"1"})
    for words in (("oci",), ("a.tar", "--compression", "none"), ("d.tar", "--format", "docker")):
        target = str(tmp_path / words[0])
        assert call("save", "one", target, *words[1:]) == (0, "", f"saved one to {target}\n")
        name = f"from-{words[0]}"
        assert said(call("load", target, name)) == f"{name}:latest {image_id}\n"
    code, out, err = call("save", "one", "-", "--format", "docker")
    assert (code, err) == (0, "")
    assert out.encode() == (tmp_path / "d.tar").read_bytes()


def test_a_root_is_imported(call: Call, tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/hostname").write_text("box\n")
    image_id = said(call("import", str(tmp_path / "root"), "mine")).strip()
    assert document(call("inspect", "mine"))["image_id"] == image_id


def test_a_damaged_store_is_told_by_the_exit_code(call: Call, store: Store) -> None:
    put_image(store, "one", {"a": b"content"})
    assert said(call("fsck", "--read-data")) == "checked 1 image, 1 layer, 1 object: sound\n"
    (path,) = store.layout.objects.glob("*/*")
    path.chmod(0o600)
    path.write_bytes(b"CONTENT")
    assert call("fsck")[0] == 0
    code, out, _ = call("fsck", "--read-data")
    assert code == 4
    assert "affects one:latest" in out
    assert out.endswith("checked 1 image, 1 layer, 1 object: 1 problem\n")
    assert call("fsck", "--read-data", "--repair")[0] == 4
    assert [p["kind"] for p in json.loads(call("fsck", "--json")[1])["problems"]] == [
        "object-missing"
    ]


def test_a_collection_says_what_it_removes(call: Call, store: Store) -> None:
    put_image(store, None, {"a": b"content"})
    plan = document(call("gc", "--dry-run", "--json"))
    assert (len(plan["images"]), len(plan["layers"]), plan["objects"]) == (1, 1, 1)
    assert said(call("gc")).startswith("removed 1 image, 1 layer, 1 object: ")
    assert said(call("gc")) == "nothing to remove\n"


def test_df_is_a_table_that_adds_up(call: Call, store: Store) -> None:
    put_image(store, "one", {"a": b"x" * 3000})
    put_image(store, "two", {"a": b"x" * 3000}, {"b": b"y" * 1000})
    lines = said(call("df")).splitlines()
    assert lines[1] == "2 images   0 containers   if stored apart 7.00 kB   saved 42.9 %"
    rows = {line.split()[0]: line.split()[1:9] for line in lines if line.startswith(("one", "two"))}
    assert rows["one:latest"] == ["3.00", "kB", "3.00", "kB", "0", "B", "3.00", "kB"]
    assert rows["two:latest"] == ["4.00", "kB", "4.00", "kB", "1.00", "kB", "3.00", "kB"]
    assert lines[-1] == "adds up to du: yes"
    assert "orphans 0 B" in "".join(lines)
    (store.layout.root / "stray").write_text("x")
    assert "orphans 4.10 kB" in said(call("df"))


def test_the_doctor_needs_no_store(call: Call, tmp_path: Path) -> None:
    _, out, err = call("doctor", "--json")
    assert err == ""
    assert {"kernel", "overlay", "seccomp"} <= {a["name"] for a in json.loads(out)["abilities"]}
    assert not (tmp_path / "store").exists()
