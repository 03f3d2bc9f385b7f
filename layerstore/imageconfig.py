"""An image's ``config`` object: what the base had, changed by what the spec says; and its tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from layerstore.errors import BuildError
from layerstore.formats.entries import Kind
from layerstore.formats.oci import Json
from layerstore.formats.tree import Tree, show
from layerstore.names import DiffID
from layerstore.spec import Command, Config, FileTest, Healthcheck, RunTest, SizeTest, Stage
from layerstore.store.store import Store


def merged(base: Json, config: Config, run_labels: Mapping[str, str]) -> Json:
    """Keys sorted, so that equal configs have equal bytes. Unknown keys of the base are kept.

    As with docker, a new entrypoint takes the base's command away: it was meant for another one.
    """
    result = dict(base)
    if config.entrypoint is not None:
        result["Entrypoint"] = list(config.entrypoint)
        result.pop("Cmd", None)
    if config.cmd is not None:
        result["Cmd"] = list(config.cmd)
    if config.env:
        names = dict(item.partition("=")[::2] for item in base.get("Env") or ())
        names.update(config.env)
        result["Env"] = [f"{name}={value}" for name, value in names.items()]
    if config.user is not None:
        result["User"] = config.user
    if config.workdir is not None:
        result["WorkingDir"] = config.workdir
    texts = {label.name: label.value for label in config.labels if isinstance(label.value, str)}
    if labels := {**(base.get("Labels") or {}), **texts, **run_labels}:
        result["Labels"] = dict(sorted(labels.items()))
    if config.expose:
        ports = {*(base.get("ExposedPorts") or ()), *config.expose}
        result["ExposedPorts"] = {port: {} for port in sorted(ports)}
    if config.volumes:
        volumes = {*(base.get("Volumes") or ()), *config.volumes}
        result["Volumes"] = {volume: {} for volume in sorted(volumes)}
    if config.stopsignal is not None:
        result["StopSignal"] = config.stopsignal
    if config.healthcheck is not None:
        result["Healthcheck"] = _healthcheck(config.healthcheck)
    return {key: result[key] for key in sorted(result) if result[key] not in ([], {}, "", None)}


def _healthcheck(check: Healthcheck) -> Json:
    """Docker's extension of the config; times in nanoseconds."""
    if check.command is None:
        return {"Test": ["NONE"]}
    if check.command.script is None:
        document: Json = {"Test": ["CMD", *check.command.words]}
    else:
        document = {"Test": ["CMD-SHELL", check.command.script]}
    for key, seconds in (
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
    ):
        if seconds is not None:
            document[key] = round(seconds * 1e9)
    if check.retries is not None:
        document["Retries"] = check.retries
    return document


class Runner(Protocol):
    """Something that can run a command in the finished stage."""

    def output_of(self, command: Command) -> str: ...


def tested(stage: Stage, tree: Tree, layers: list[DiffID], store: Store, runner: Runner) -> None:
    """Every test of the stage is true. Raises BuildError at the first that is not."""
    for test in stage.tests:
        match test:
            case RunTest(position, command):
                try:
                    runner.output_of(command)
                except BuildError as error:
                    raise BuildError(f"{position}: the test failed: {error.brief}",
                                     hint=error.hint, details=error.details) from error  # fmt: skip
            case FileTest(position, path, mode):
                _, node = tree.resolve(path)
                if node is None:
                    raise BuildError(f"{position}: the test failed: {show(path)} is not there")
                if mode is not None and (node.kind is not Kind.FILE or node.mode != mode):
                    raise BuildError(
                        f"{position}: the test failed: {show(path)} is a {node.kind.name.lower()} "
                        f"of mode {node.mode:04o}, not a file of mode {mode:04o}"
                    )
            case SizeTest(position, limit):
                size = sum(entry.size for layer in layers for entry in store.layers.entries(layer))
                if size > limit:
                    raise BuildError(
                        f"{position}: the test failed: the layers hold {size} bytes, more than "
                        f"{limit}",
                        hint="layerstore history shows what each step added",
                    )
