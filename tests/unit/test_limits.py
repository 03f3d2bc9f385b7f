from __future__ import annotations

import pytest

from layerstore.errors import UsageError
from layerstore.runtime.limits import Limits, parse_cpus, parse_pids, parse_size, parse_swap


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("7b", 7),
        ("512m", 512 << 20),
        ("512M", 512 << 20),
        ("512mb", 512 << 20),
        ("512MiB", 512 << 20),
        ("1.5g", 3 << 29),
        ("2K", 2048),
        ("1t", 1 << 40),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_spelt_as_in_docker(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "m", "-1", "+1", "1e3", "1..5", ".", "1.", "5x", "5mm", "5 5", "٣", "0x10", "inf"]
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_size(text)
    assert repr(text) in raised.value.brief


def test_other_limits_are_spelt_as_in_docker() -> None:
    assert (parse_swap("-1"), parse_swap("1g")) == (-1, 1 << 30)
    assert (parse_cpus("1.5"), parse_cpus(".5"), parse_cpus("2")) == (1.5, 0.5, 2.0)
    assert (parse_pids("100"), parse_pids("0"), parse_pids("-1")) == (100, None, None)


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1e1", "two"])
def test_what_is_no_number_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_cpus(text)


@pytest.mark.parametrize("text", ["", "-2", "1.5", "many", "²"])
def test_what_is_no_number_of_processes_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_pids(text)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"memory": 1 << 20}, id="too-little-memory"),
        pytest.param({"memory_swap": 1 << 30}, id="swap-alone"),
        pytest.param({"memory": 64 << 20, "memory_swap": 32 << 20}, id="swap-below-memory"),
        pytest.param({"cpus": 0.001}, id="too-few-cpus"),
        pytest.param({"cpus": float("nan")}, id="no-number"),
        pytest.param({"pids": 0}, id="no-processes"),
    ],
)
def test_limits_that_contradict_themselves_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Limits(**fields)


def test_limits_as_cgroups_take_them() -> None:
    settings = Limits(memory=64 << 20, cpus=1.5, pids=3).settings()
    assert settings.memory == 64 << 20
    assert settings.memory_swap is None
    assert settings.cpu_quota_us == 150_000
    assert settings.pids == 3
    assert Limits().settings().controllers() == {}
