"""Builds, from a spec file to what a container sees: judged by trees, ids and reasons."""

from __future__ import annotations

import os
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from abilities import needs_root, needs_tool

from layerstore.api import Layerstore
from layerstore.build import Built
from layerstore.errors import BuildError
from layerstore.events import Event, StepStarted
from layerstore.formats.entries import Kind
from layerstore.formats.tree import Node, Tree
from layerstore.names import Digest, ImageRef
from layerstore.settings import Settings
from layerstore.sources import Context, ContextFile
from layerstore.spec import SpecError


class Workbench:
    """A folder with a spec, a store, and what a build of it says."""

    def __init__(self, folder: Path, store: Path, *, epoch: int | None = None) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.started: list[StepStarted] = []
        settings = Settings(root=store, source_date_epoch=epoch)
        self.store = Layerstore(store, settings=settings, sink=self._note)

    def _note(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self.started.append(event)

    def file(self, name: str, content: str = "", mode: int = 0o644) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
        return path

    def build(self, spec: str, *, use_cache: bool = True) -> Built:
        self.started.clear()
        self.file("spec.yaml", "layerstore: 1\nname: made\n" + textwrap.dedent(spec))
        return self.store.build(self.folder / "spec.yaml", use_cache=use_cache)

    def tree(self, name: str = "made") -> Tree:
        image = self.store.store.images.find(name)
        return self.store.store.layers.tree(image.diff_ids)

    def node(self, path: str) -> Node:
        found = self.tree().lookup(path.encode())
        assert found is not None, f"{path} is not in the image"
        return found

    def content(self, path: str) -> str:
        digest = self.node(path).digest
        return self.store.store.objects.read(digest).decode() if digest else ""

    def actions(self) -> list[str]:
        return [event.action for event in self.started]

    def reasons(self) -> list[str]:
        return [event.reason for event in self.started]


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path / "context", tmp_path / "store")


COPIES = """
from: scratch
steps:
  - copy: {src: site/, to: /srv/}
  - write: {to: /etc/motd, text: "hello\\n"}
  - symlink: {path: /srv/current, target: index.html}
"""


def with_site(bench: Workbench) -> Workbench:
    bench.file("site/index.html", "<h1>")
    bench.file("site/run.sh", "#!/bin/sh\n", 0o755)
    bench.file("site/css/a.css", "a {}")
    return bench


def test_copy_normalises_modes_owners_and_times(bench: Workbench) -> None:
    with_site(bench).folder.joinpath("site/index.html").chmod(0o600)
    bench.build(COPIES)
    seen = {
        path.decode(): (node.kind, node.mode, node.uid, node.gid, node.mtime_ns)
        for path, node in bench.tree().walk()
    }
    assert seen == {
        "etc": (Kind.DIRECTORY, 0o755, 0, 0, 0),
        "etc/motd": (Kind.FILE, 0o644, 0, 0, 0),
        "srv": (Kind.DIRECTORY, 0o755, 0, 0, 0),
        "srv/css": (Kind.DIRECTORY, 0o755, 0, 0, 0),
        "srv/css/a.css": (Kind.FILE, 0o644, 0, 0, 0),
        "srv/current": (Kind.SYMLINK, 0o777, 0, 0, 0),
        "srv/index.html": (Kind.FILE, 0o644, 0, 0, 0),
        "srv/run.sh": (Kind.FILE, 0o755, 0, 0, 0),
    }


def test_the_same_spec_gives_the_same_image_whatever_the_umask_the_day_and_the_store(
    tmp_path: Path,
) -> None:
    first = with_site(Workbench(tmp_path / "one", tmp_path / "store-one")).build(COPIES)
    old = os.umask(0o077)
    try:
        other = with_site(Workbench(tmp_path / "two", tmp_path / "store-two"))
        for path in other.folder.rglob("*"):
            os.utime(path, (123456789, 123456789))
        second = other.build(COPIES)
    finally:
        os.umask(old)
    assert second.image_id == first.image_id


def test_source_date_epoch_is_the_time_of_everything_made(tmp_path: Path) -> None:
    bench = with_site(Workbench(tmp_path / "c", tmp_path / "s", epoch=1_700_000_000))
    bench.build(COPIES)
    assert {
        node.mtime_ns for _, node in bench.tree().walk() if node.kind is not Kind.DIRECTORY
    } == {1_700_000_000 * 10**9}
    image = bench.store.store.images.find("made")
    assert image.config.created == "2023-11-14T22:13:20Z"


def test_a_second_build_runs_nothing_and_gives_the_same_image(bench: Workbench) -> None:
    first = with_site(bench).build(COPIES)
    second = bench.build(COPIES)
    assert (second.image_id, bench.actions()) == (first.image_id, ["cached"] * 3)


def test_a_miss_names_the_first_thing_that_differs(bench: Workbench) -> None:
    with_site(bench).build(COPIES)
    bench.file("site/index.html", "<h2>")
    bench.build(COPIES)
    assert bench.reasons()[0] == "the content of site/ changed"


def test_a_touched_file_is_no_change(bench: Workbench) -> None:
    with_site(bench).build(COPIES)
    os.utime(bench.folder / "site/index.html", (1, 1))
    bench.build(COPIES)
    assert bench.actions() == ["cached"] * 3


def test_a_step_that_gives_the_same_bytes_stops_the_cascade(bench: Workbench) -> None:
    bench.build("""
        from: scratch
        steps:
          - write: {to: /a, text: "one", mode: "0644"}
          - write: {to: /b, text: "two"}
        """)
    bench.build("""
        from: scratch
        steps:
          - write: {to: /a, text: "one", mode: "u=rw,go=r"}
          - write: {to: /b, text: "two"}
        """)
    assert bench.actions() == ["run", "cached"]


def test_without_the_cache_everything_runs_to_the_same_image(bench: Workbench) -> None:
    first = with_site(bench).build(COPIES)
    second = bench.build(COPIES, use_cache=False)
    assert (second.image_id, bench.actions()) == (first.image_id, ["run"] * 3)


def test_steps_of_one_layer_leave_nothing_of_what_they_removed(bench: Workbench) -> None:
    bench.file("big", "x" * 100_000)
    built = bench.build("""
        from: scratch
        steps:
          - copy: {src: big, to: /tmp/big}
            layer: one
          - remove: /tmp/big
            layer: one
        """)
    image = bench.store.store.images.get(built.image_id)
    entries = [e for d in image.diff_ids for e in bench.store.store.layers.entries(d)]
    assert [(e.path, e.kind, e.size) for e in entries] == [(b"tmp", Kind.DIRECTORY, 0)]


def test_a_removed_file_of_another_layer_is_a_whiteout_there(bench: Workbench) -> None:
    built = bench.build("""
        from: scratch
        steps:
          - write: {to: /d/a, text: "1"}
          - remove: /d/a
        """)
    image = bench.store.store.images.get(built.image_id)
    last = bench.store.store.layers.entries(image.diff_ids[-1])
    assert [(e.path, e.kind) for e in last] == [(b"d", Kind.DIRECTORY), (b"d/a", Kind.WHITEOUT)]


def test_attrs_change_metadata_and_add_no_content(bench: Workbench) -> None:
    bench.file("f", "content")
    built = bench.build("""
        from: scratch
        steps:
          - copy: {src: f, to: /d/f}
          - attrs: {path: /d, owner: "7:8", mode: "g=u", recursive: true}
        """)
    node = bench.node("d/f")
    assert (node.uid, node.gid, node.mode) == (7, 8, 0o664)
    objects = list(bench.store.store.objects.all())
    assert len(objects) == 1, "chown and chmod must store no content again"
    assert built.steps[1].action == "run"


def test_a_path_through_a_symlink_stays_in_the_image(bench: Workbench) -> None:
    bench.build("""
        from: scratch
        steps:
          - symlink: {path: /lib, target: usr/lib}
          - symlink: {path: /out, target: /../../../etc}
          - mkdir: /usr/lib
          - write: {to: /lib/so, text: "so"}
          - write: {to: /out/passwd, text: "mine"}
        """)
    assert bench.content("usr/lib/so") == "so"
    assert bench.content("etc/passwd") == "mine"


def test_owners_by_name_are_those_of_the_image(bench: Workbench) -> None:
    bench.build("""
        from: scratch
        steps:
          - write: {to: /etc/passwd, text: "app:x:41:42::/:/bin/sh\\n"}
          - write: {to: /etc/group, text: "web:x:77:\\n"}
          - write: {to: /a, text: "", owner: app}
          - write: {to: /b, text: "", owner: "app:web"}
        """)
    owners = {p: (bench.node(p).uid, bench.node(p).gid) for p in ("a", "b")}
    assert owners == {"a": (41, 42), "b": (41, 77)}


def test_copying_from_a_stage_keeps_owners_modes_and_links(bench: Workbench) -> None:
    bench.build("""
        stages:
          first:
            from: scratch
            steps:
              - write: {to: /out/tool, text: "x", owner: "5:6", mode: "04755"}
          second:
            from: scratch
            steps:
              - copy: {from: first, src: /out/, to: /opt/}
        """)
    node = bench.node("opt/tool")
    assert (node.uid, node.gid, node.mode) == (5, 6, 0o4755)


def test_a_stage_that_the_image_does_not_need_is_not_built(bench: Workbench) -> None:
    bench.build("""
        stages:
          unused:
            from: scratch
            steps: [{write: {to: /x, text: "1"}}]
          image:
            from: scratch
            steps: [{write: {to: /y, text: "2"}}]
        """)
    assert [event.stage for event in bench.started] == ["image"]


def test_ignored_files_are_neither_copied_nor_keyed(bench: Workbench) -> None:
    spec = """
        ignore: ["*.log", .git]
        from: scratch
        steps: [{copy: {src: ./, to: /app/}}]
        """
    bench.file("a.txt", "a")
    bench.file("noise.log", "1")
    bench.file(".git/HEAD", "ref")
    bench.build(spec)
    bench.file("noise.log", "2")
    bench.build(spec)
    assert bench.actions() == ["cached"]
    names = {path.decode() for path, _ in bench.tree().walk()}
    assert names == {"app", "app/a.txt", "app/spec.yaml"}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ('[{copy: {src: nowhere, to: /x}}]', "'nowhere' in the folder"),
        ('[{remove: /missing}]', "'/missing' is not there to be removed"),
        ('[{attrs: {path: /missing, mode: "0600"}}]', "'/missing' is not there"),
        ('[{write: {to: /a, text: x}}, {write: {to: /a/b, text: y}}]', "'/a' is no directory"),
        ('[{mkdir: /a}, {write: {to: /a, text: x}}]', "'/a' is a directory in the image"),
        ('[{write: {to: /a, text: x, owner: nobody}}]', "has no user 'nobody'"),
    ],
    ids=["source", "remove", "attrs", "through a file", "over a directory", "owner"],
)  # fmt: skip
def test_a_step_that_cannot_be_done_says_where_and_why(
    bench: Workbench, steps: str, message: str
) -> None:
    with pytest.raises(BuildError) as failure:
        bench.build(f"from: scratch\nsteps: {steps}\n")
    assert message in failure.value.brief
    assert "spec.yaml:4" in failure.value.brief
    assert bench.store.images() == []


def test_a_symlink_in_the_folder_does_not_lead_out_of_it(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (bench.folder / "way").symlink_to(tmp_path)
    with pytest.raises(BuildError, match="leads out of the folder"):
        bench.build("from: scratch\nsteps: [{copy: {src: way/secret, to: /s}}]\n")


def test_a_fifo_is_no_archive_to_extract(bench: Workbench) -> None:
    os.mkfifo(bench.folder / "a.tar")
    with pytest.raises(BuildError, match=r"'a\.tar' is no regular file"):
        bench.build("from: scratch\nsteps: [{extract: {src: a.tar, to: /}}]\n")


def test_three_mistakes_are_reported_at_once(bench: Workbench) -> None:
    with pytest.raises(SpecError) as failure:
        bench.build("from: nothing\nsteps: [{coppy: {}}, {mkdir: relative}]\nconfgi: {}\n")
    assert len(failure.value.diagnostics) == 4


def test_a_failing_test_of_the_image_keeps_the_old_name(bench: Workbench) -> None:
    first = bench.build('from: scratch\nsteps: [{write: {to: /a, text: "1"}}]\n')
    with pytest.raises(BuildError, match="'/b' is not there"):
        bench.build('from: scratch\nsteps: [{write: {to: /a, text: "2"}}]\ntests: [{file: /b}]\n')
    assert bench.store.store.refs.get(ImageRef("made")) == first.image_id


# -- steps that run -------------------------------------------------------------------------------

RUNS = """
from: {host: [busybox]}
steps:
  - run: |
      mkdir /made && echo one > /made/a && ln /made/a /made/b
      chmod 600 /etc/passwd
      rm -r /etc/group
"""

needs_busybox = needs_tool("busybox")


@needs_root
@needs_busybox
@pytest.mark.parametrize("driver", ["composed", "stacked"])
def test_a_run_step_gives_the_same_layer_on_either_driver(tmp_path: Path, driver: str) -> None:
    ids = []
    for index in range(2):
        bench = Workbench(tmp_path / f"c{index}", tmp_path / f"s{index}")
        chosen = driver if index == 0 else "stacked"
        settings = Settings(root=tmp_path / f"s{index}", driver=chosen)
        bench.store = Layerstore(tmp_path / f"s{index}", settings=settings)
        ids.append(bench.build(RUNS).image_id)
        tree = bench.tree()
        assert tree.lookup(b"made/a") is tree.lookup(b"made/b")
        assert bench.node("etc/passwd").mode == 0o600
        assert tree.lookup(b"etc/group") is None
    assert ids[0] == ids[1]


@needs_root
@needs_busybox
def test_a_chown_and_a_move_in_a_run_step_add_no_object(bench: Workbench) -> None:
    for number in range(20):
        bench.file(f"data/{number}", f"content {number}\n" * 100)
    base = """
        from: {host: [busybox]}
        steps: [{copy: {src: data/, to: /data/}}]
        """
    bench.build(base)
    before = {digest for digest, _ in bench.store.store.objects.all()}
    bench.build(base.replace("}}]", "}}, {run: chown -R 9:9 /data && mv /data /moved}]"))
    assert {digest for digest, _ in bench.store.store.objects.all()} == before
    assert (bench.node("moved/7").uid, bench.content("moved/7")) == (9, "content 7\n" * 100)
    assert bench.tree().lookup(b"data") is None


@needs_root
@needs_busybox
def test_a_failing_command_shows_the_end_of_its_output(bench: Workbench) -> None:
    with pytest.raises(BuildError) as failure:
        bench.build("from: {host: [busybox]}\nsteps: [{run: echo the reason; exit 3}]\n")
    assert "spec.yaml:4: echo the reason; exit 3 ended with exit code 3" in failure.value.brief
    assert failure.value.details == "the reason"


@needs_root
@needs_busybox
def test_a_step_sees_no_network_unless_it_says_so(bench: Workbench) -> None:
    bench.build("""
        from: {host: [busybox]}
        steps: [{run: "cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' ' > /interfaces"}]
        """)
    assert bench.content("interfaces") == "lo\n"


@needs_root
@needs_busybox
def test_a_bound_file_is_seen_keyed_and_not_kept(bench: Workbench) -> None:
    spec = """
        from: {host: [busybox]}
        steps:
          - run: cp /in/file /copy
            mounts: [{bind: file, to: /in/file}]
        """
    bench.file("file", "first")
    bench.build(spec)
    assert bench.content("copy") == "first"
    assert bench.tree().lookup(b"in") is None
    bench.file("file", "second")
    bench.build(spec)
    assert (bench.content("copy"), bench.reasons()) == ("second", ["the content of file changed"])


@needs_root
@needs_busybox
def test_labels_and_tests_run_in_the_finished_stage(bench: Workbench) -> None:
    bench.file("VERSION", "1.2.3\n")
    bench.build("""
        from: {host: [busybox]}
        steps: [{copy: {src: VERSION, to: /VERSION}}]
        config: {labels: {version: {run: cat /VERSION}}}
        tests: [{run: test -f /VERSION}, {file: /VERSION, mode: "0644"}, {size: "<= 10MiB"}]
        """)
    image = bench.store.store.images.find("made")
    assert image.config.run.labels == {"version": "1.2.3"}
    assert bench.tree().lookup(b"written-by-a-test") is None


# -- unchanged files stay unread ------------------------------------------------------------------


def old(bench: Workbench) -> None:
    """Files as they are some time after they were written: a clock's grain does not matter."""
    deadline = time.time() + 2.1
    while time.time() < deadline:
        time.sleep(0.05)


def reads(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    seen: list[bytes] = []
    read = Context.content_digest

    def counted(self: Context, file: ContextFile) -> Digest:
        seen.append(file.path)
        return read(self, file)

    monkeypatch.setattr(Context, "content_digest", counted)
    return seen


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_site(bench)
    old(bench)
    bench.build(COPIES)
    seen = reads(bench, monkeypatch)
    bench.build(COPIES)
    assert seen == []
    # The same size and times: only ctime can tell, and it does.
    changed = bench.folder / "site/index.html"
    before = changed.stat()
    changed.write_text("<h9>"[: before.st_size])
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    bench.build(COPIES)
    assert seen == [b"site/index.html"]
    assert bench.content("srv/index.html") == "<h9>"


def test_a_file_that_was_just_written_is_not_trusted(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_site(bench).build(COPIES)
    seen = reads(bench, monkeypatch)
    bench.build(COPIES)
    assert sorted(seen) == [b"site/css/a.css", b"site/index.html", b"site/run.sh"]


# -- what is copied is what the key was made of ---------------------------------------------------


@pytest.mark.parametrize(
    "content", ["", "new", "longer than before"], ids=["emptied", "other", "grown"]
)
def test_a_file_that_changes_between_key_and_copy_fails_the_build(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    path = bench.file("file", "old")
    real = Context.digest

    def then_changed(self: Context, files: list[ContextFile], mode_of: Any) -> Digest:
        digest = real(self, files, mode_of)
        path.write_text(content)
        return digest

    monkeypatch.setattr(Context, "digest", then_changed)
    spec = "from: scratch\nsteps: [{copy: {src: file, to: /file}}]\n"
    with pytest.raises(BuildError, match="'file' changed during the build"):
        bench.build(spec)
    monkeypatch.undo()
    bench.build(spec)
    assert (bench.content("file"), bench.actions()) == (content, ["run"])


@needs_root
@needs_busybox
def test_a_bind_is_keyed_by_where_it_leads_and_by_what_is_ignored(bench: Workbench) -> None:
    bench.file("v1/f", "one")
    bench.file("v1/hidden", "secret")
    (bench.folder / "cur").symlink_to("v1")
    spec = """
        ignore: [hidden]
        from: {host: [busybox]}
        steps:
          - run: cat /in/f /in/hidden > /seen
            mounts: [{bind: cur, to: /in}]
        """
    bench.build(spec)
    bench.file("v1/f", "two")
    bench.build(spec)
    assert (bench.content("seen"), bench.actions()) == ("twosecret", ["run"])
    bench.file("v1/hidden", "changed")
    bench.build(spec)
    assert (bench.content("seen"), bench.actions()) == ("twochanged", ["run"])


def test_a_damaged_layer_of_several_steps_is_made_again(bench: Workbench) -> None:
    spec = """
        from: scratch
        steps:
          - {write: {to: /a, text: "1"}, layer: both}
          - {write: {to: /b, text: "2"}, layer: both}
        """
    first = bench.build(spec)
    image = bench.store.store.images.get(first.image_id)
    entries = bench.store.store.layout.layer(image.diff_ids[0]) / "entries"
    entries.write_bytes(entries.read_bytes()[:-1])
    assert bench.build(spec).image_id == first.image_id
    assert bench.store.store.layers.is_whole(image.diff_ids[0])


def test_a_dry_run_knows_nothing_above_a_stage_that_will_run(bench: Workbench) -> None:
    spec = """
        stages:
          a:
            from: scratch
            steps: [{{mkdir: {path}}}]
          b:
            from: {{stage: a}}
            steps: [{{write: {{to: /x, text: "1"}}}}]
        """
    bench.build(spec.format(path="/d"))
    bench.file("spec.yaml", "layerstore: 1\nname: made\n" + textwrap.dedent(spec.format(path="/e")))
    plan = bench.store.plan(bench.folder / "spec.yaml")
    assert [step.action == "cached" for step in plan.steps] == [False, False]


@needs_root
@needs_busybox
def test_a_path_as_long_as_linux_allows_survives_a_step(bench: Workbench) -> None:
    bench.build("""
        from: {host: [busybox]}
        steps:
          - run: |
              d=$(printf '%0200d' 0)
              cd / && i=0
              while [ $i -lt 19 ]; do mkdir $d && cd $d; i=$((i+1)); done
              echo deep > file
        """)
    assert bench.content("/".join(["0" * 200] * 19) + "/file") == "deep\n"
