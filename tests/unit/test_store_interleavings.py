"""A collection at every instant of a transaction, and the other way round: nothing dangles.

One process plays both: before each call to the kernel of one actor the other acts to its end,
unless a lock keeps it out. The same harness runs over protocols with one rule left out, and must
find them wrong: that shows that it would find a mistake.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from storekit import config_of, put_image, stage_files

from layerstore.errors import LayerstoreError
from layerstore.names import ImageRef
from layerstore.store import atomic, fsck, gc, locks
from layerstore.store.atomic import Transaction
from layerstore.store.store import Store

CALLS = (
    "stat",
    "rename",
    "write",
    "fsync",
    "unlink",
    "listdir",
    "open",
    "mkdir",
    "rmdir",
    "scandir",
)
FILES = {f"f{n}": b"%d" % n * 100 for n in range(5)}
REF = ImageRef.parse("image")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    # Which instants there are does not depend on when the disk has what.
    monkeypatch.setattr(atomic, "syncfs", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return Store.open(tmp_path / "store")


def make_garbage(store: Store) -> None:
    """Everything that will be published is there already, and nothing needs it."""
    put_image(store, "image", FILES)
    store.refs.delete(REF)


class Before:
    """Acts at the first call to the kernel, from the n-th on, at which no lock forbids it."""

    def __init__(
        self, store: Store, when: int, act: Callable[[], None], *, heeds_locks: bool = True
    ) -> None:
        self.acted_at = 0
        """0: never."""
        self._calls = 0
        self._store = store
        self._when = when
        self._act = act
        self._heeds_locks = heeds_locks
        self._is_busy = False

    @contextmanager
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self._hooked(getattr(os, name)))
            yield

    def _hooked(self, function: Callable[..., object]) -> Callable[..., object]:
        def hooked(*args: object, **kwargs: object) -> object:
            if not self._is_busy and not self.acted_at:
                self._is_busy = True
                self._calls += 1
                if self._calls >= self._when and self._is_free():
                    self.acted_at = self._calls
                    self._act()
                self._is_busy = False
            return function(*args, **kwargs)

        return hooked

    def _is_free(self) -> bool:
        root = self._store.layout.root
        return not (self._heeds_locks and any(locks.is_held(root / n) for n in ("gate", "lock")))


def publish(store: Store) -> Callable[[], None]:
    def run() -> None:
        put_image(store, "image", FILES)

    return run


def collect(store: Store) -> Callable[[], None]:
    plan = gc.plan(store)
    return lambda: gc.sweep(store, plan)


Actor = Callable[[Store], Callable[[], None]]


def count_dangling(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    first: Actor,
    second: Actor,
    *,
    heeds_locks: bool = True,
    enough: int = 1000,
) -> tuple[int, int]:
    """(instants of ``first`` at which ``second`` could act whole, those that left a wrong store)"""
    instants = wrong = when = 0
    while True:
        make_garbage(store)
        run, act = first(store), second(store)
        before = Before(store, when + 1, act, heeds_locks=heeds_locks)
        failed = False
        try:
            with before.installed(monkeypatch):
                run()
        except (LayerstoreError, OSError):
            failed = True
        if not before.acted_at or wrong == enough:
            return instants, wrong
        when = before.acted_at
        instants += 1
        is_whole = fsck.check(store, read_data=True).is_clean and store.refs.get(REF) is not None
        wrong += failed or not is_whole


def test_a_collection_at_any_instant_of_a_publication_takes_nothing_from_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    instants, wrong = count_dangling(store, monkeypatch, publish, collect)
    assert instants > 40 and wrong == 0


def test_a_publication_at_any_instant_of_a_collection_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "_BATCH", 2)
    instants, wrong = count_dangling(store, monkeypatch, collect, publish)
    assert instants > 10 and wrong == 0


# -- the harness finds what is wrong ---------------------------------------------------------


def no_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Transaction, "_append", lambda self, digests: None)


def lease_after_lookup(patch: pytest.MonkeyPatch) -> None:
    """Digests join the lease when everything is published, before the lock is dropped."""
    real = Transaction._append
    waiting: list[list[object]] = []
    patch.setattr(Transaction, "_append", lambda self, digests: waiting.append(digests))
    publish_records = Transaction._publish_records

    def late(self: Transaction) -> None:
        for digests in waiting:
            real(self, digests)  # type: ignore[arg-type]
        waiting.clear()
        publish_records(self)

    patch.setattr(Transaction, "_publish_records", late)


@contextmanager
def free(root: Path) -> Iterator[None]:
    yield


def no_store_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(locks, "publishing", free)


def no_collection_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(locks, "collecting", free)


def stale_live_set(patch: pytest.MonkeyPatch) -> None:
    """Objects are judged by what lived before the records were swept."""
    real = gc.live
    found: list[gc.Live] = []

    def once(store: Store, **kwargs: object) -> gc.Live:
        if not found or "named" not in kwargs:
            found.append(real(store))
        return found[-1]

    patch.setattr(gc, "live", once)


@pytest.mark.parametrize(
    ("mutation", "first", "second", "heeds_locks"),
    [
        (no_lease, publish, collect, True),
        (lease_after_lookup, publish, collect, True),
        (no_store_lock, collect, publish, False),
        (no_collection_lock, collect, publish, True),
        (stale_live_set, collect, publish, True),
    ],
    ids=["no lease", "lease after lookup", "no store lock", "no collection lock", "stale live set"],
)
def test_a_protocol_with_a_rule_left_out_is_found_wrong(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    mutation: Callable[[pytest.MonkeyPatch], None],
    first: Actor,
    second: Actor,
    heeds_locks: bool,
) -> None:
    monkeypatch.setattr(gc, "_BATCH", 2)
    mutation(monkeypatch)
    _, wrong = count_dangling(store, monkeypatch, first, second, heeds_locks=heeds_locks, enough=1)
    assert wrong == 1


# -- leases first, then names ------------------------------------------------------------------


def end_during_a_collection(store: Store, monkeypatch: pytest.MonkeyPatch, when: int) -> int:
    """A build names its image and drops its lease at the n-th call of a collection, which no lock
    prevents. The call; 0 if there are not so many."""
    transaction = store.transaction()
    transaction.__enter__()
    image_id = transaction.stage_image(config_of([stage_files(transaction, FILES)]))
    transaction.publish()

    def finish() -> None:
        transaction.publish({REF: image_id})
        transaction.__exit__(None, None, None)

    before = Before(store, when, finish, heeds_locks=False)
    plan = gc.GcPlan(
        images=tuple(store.images.all()),
        layers=tuple(store.layers.all()),
        objects=tuple(digest for digest, _ in store.objects.all()),
    )
    with before.installed(monkeypatch):
        gc.sweep(store, plan)
    if not before.acted_at:
        finish()
    return before.acted_at


def names_before_leases(patch: pytest.MonkeyPatch) -> None:
    real = gc._named_images

    def early(store: Store, **kwargs: object) -> gc.Live:
        names = real(store, gc.Live())
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(gc, "_named_images", lambda store, found: names)
            return live(store, **kwargs)  # type: ignore[arg-type]

    live = gc.live
    patch.setattr(gc, "live", early)


@pytest.mark.parametrize("mutation", [None, names_before_leases], ids=["as it is", "wrong order"])
def test_a_build_that_ends_during_a_collection_is_seen_by_its_lease_or_its_name(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    mutation: Callable[[pytest.MonkeyPatch], None] | None,
) -> None:
    if mutation is not None:
        mutation(monkeypatch)
    when, wrong = 1, 0
    while end_during_a_collection(store, monkeypatch, when):
        wrong += not fsck.check(store, read_data=True).is_clean
        store.refs.delete(REF)
        gc.sweep(store, gc.plan(store))
        when += 1
    assert when > 20
    assert bool(wrong) is (mutation is not None)


# -- the lease file itself ---------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True], ids=["as it is", "made in place"])
def test_a_recovery_at_any_instant_of_a_beginning_transaction_leaves_its_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    if in_place:

        def create(folder: Path, name: str, final: Path, content: bytes = b"") -> int:
            fd = locks.open_lock(final)
            with suppress(FileNotFoundError):
                os.stat(final)  # an instant between making and locking
            locks.try_lock(fd)
            return fd

        monkeypatch.setattr(atomic, "_create_locked", create)
    lost = when = 0
    while True:
        before = Before(store, when + 1, store.recover)
        with before.installed(monkeypatch), store.transaction():
            names = os.listdir(store.layout.folder("leases"))
            lost += not any(locks.is_held(store.layout.folder("leases") / n) for n in names)
        if not before.acted_at:
            break
        when = before.acted_at
    assert when > 5
    assert bool(lost) is in_place
