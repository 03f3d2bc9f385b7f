"""Networks as they are planned: subnets, addresses, ports and names."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.errors import ConflictError, HostError, UsageError
from layerstore.kernel.addresses import format_address, parse_address
from layerstore.runtime.network import (
    Host,
    Network,
    Publication,
    Subnet,
    check_wanted_address,
    emit_hosts,
    free_addresses,
    hosts_of,
    mac_of,
    network_of,
    parse_add_host,
    parse_publish,
    parse_rate,
    parse_subnet,
    plan_attachment,
    plan_network,
)


def network(subnet6: Subnet | None = None) -> Network:
    return plan_network("net", existing=(), subnet6=subnet6)


def publication(host: str | None, host_port: int, port: int, protocol: str = "tcp") -> Publication:
    address = None if host is None else parse_address(host)
    return Publication(protocol=protocol, host_address=address, host_port=host_port, port=port)


# -- networks --------------------------------------------------------------------------------------


def test_networks_get_the_first_free_subnet_and_bridge() -> None:
    first = plan_network("a", existing=())
    second = plan_network("b", existing=[first])
    third = plan_network("c", existing=[second])
    assert [(n.bridge, str(n.subnet), format_address(n.gateway)) for n in (first, second)] == [
        ("ls-br0", "10.90.0.0/22", "10.90.0.1"),
        ("ls-br1", "10.90.4.0/22", "10.90.4.1"),
    ]
    assert (third.bridge, third.subnet) == (first.bridge, first.subnet)


def test_a_subnet_that_the_host_routes_elsewhere_is_not_taken() -> None:
    busy = [parse_subnet("10.90.0.0/21"), parse_subnet("10.90.9.128/25"), parse_subnet("fd00::/8")]
    assert str(plan_network("a", existing=(), busy=busy).subnet) == "10.90.12.0/22"


def test_a_host_whose_subnets_are_all_taken_says_so() -> None:
    with pytest.raises(HostError, match=r"no subnet of 10\.90\.0\.0/15 is free"):
        plan_network("a", existing=(), busy=[parse_subnet("10.0.0.0/8")])


def test_a_wanted_subnet_must_be_free() -> None:
    wanted = parse_subnet("192.168.5.0/24")
    made = plan_network("a", existing=(), subnet=wanted)
    assert (made.subnet, format_address(made.gateway)) == (wanted, "192.168.5.1")
    with pytest.raises(ConflictError, match=r"192\.168\.5\.0/24 overlaps 192\.168\.0\.0/16"):
        plan_network("a", existing=(), busy=[parse_subnet("192.168.0.0/16")], subnet=wanted)
    with pytest.raises(ConflictError, match="overlaps"):
        plan_network("b", existing=[made], subnet=parse_subnet("192.168.5.128/25"))


@pytest.mark.parametrize("text", ["10.0.0.0/30", "10.0.0.0/7", "fd00::/64"])
def test_a_subnet_without_room_or_of_the_other_family_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a subnet|can't be a network's subnet"):
        plan_network("a", existing=(), subnet=parse_subnet(text))


@pytest.mark.parametrize(
    "text", ["10.0.0.0", "10.0.0.1/24", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/24", "x/24", "/24"]
)
def test_a_malformed_subnet_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a(n address| subnet)"):
        parse_subnet(text)


@pytest.mark.parametrize("name", ["", "none", "host", "container", "a b", "-a", "a/b", "x" * 65])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        plan_network(name, existing=())


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ConflictError, match="the network 'net' exists"):
        plan_network("net", existing=[network()])


def test_a_network_is_read_as_it_was_described() -> None:
    made = network(subnet6=parse_subnet("fd00::/64"))
    assert network_of(made.describe()) == made
    assert network_of(network().describe()) == network()


# -- addresses -------------------------------------------------------------------------------------


def test_containers_get_every_address_but_those_of_the_network() -> None:
    subnet = parse_subnet("10.0.0.0/29")
    found = free_addresses(subnet, gateway=subnet.at(1), taken={subnet.at(3)})
    assert [address[3] for address in found] == [2, 4, 5, 6]


@given(st.integers(3, 29), st.binary(min_size=4, max_size=4))
def test_a_subnet_contains_what_it_counts(prefix: int, address: bytes) -> None:
    number = int.from_bytes(address, "big") >> (32 - prefix) << (32 - prefix)
    subnet = Subnet(first=number.to_bytes(4, "big"), prefix=prefix)
    assert subnet.contains(address)
    assert subnet.contains(subnet.at(subnet.count - 1))
    assert not (number and subnet.contains((number - 1).to_bytes(4, "big")))
    assert not subnet.contains(bytes(16))


@pytest.mark.parametrize("text", ["10.90.0.0", "10.90.0.1", "10.90.3.255", "10.90.4.2"])
def test_an_address_that_no_container_can_have_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address for a container of 'net'"):
        check_wanted_address(parse_address(text), network())


def test_an_attachment_follows_from_the_address() -> None:
    made = plan_attachment(
        "0123456789abcdef",
        network(subnet6=parse_subnet("fd00::/64")),
        parse_address("10.90.1.5"),
        number=1,
    )
    assert (made.link, made.interface, made.is_default) == ("ls01234567891", "eth1", False)
    assert made.address6 == parse_address("fd00::105")
    assert mac_of(made.address) == bytes.fromhex("026c0a5a0105")


def test_an_ipv6_subnet_too_small_for_the_address_says_so() -> None:
    with pytest.raises(HostError, match="has no address that goes with"):
        plan_attachment(
            "0" * 16, network(subnet6=parse_subnet("fd00::/120")), parse_address("10.90.1.5")
        )


# -- ports -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", [publication(None, 8080, 80)]),
        ("80", [publication(None, 0, 80)]),
        ("53:5353/udp", [publication(None, 53, 5353, "udp")]),
        ("1:2/SCTP", [publication(None, 1, 2, "sctp")]),
        ("127.0.0.1:8080:80", [publication("127.0.0.1", 8080, 80)]),
        ("127.0.0.1::80", [publication("127.0.0.1", 0, 80)]),
        ("0.0.0.0:8080:80", [publication(None, 8080, 80)]),
        ("[fd00::1]:8080:80/tcp", [publication("fd00::1", 8080, 80)]),
        ("1-2:65534-65535", [publication(None, 1, 65534), publication(None, 2, 65535)]),
        ("7-8/udp", [publication(None, 0, 7, "udp"), publication(None, 0, 8, "udp")]),
    ],
)
def test_a_port_is_read_as_docker_reads_it(text: str, expected: list[Publication]) -> None:
    assert parse_publish(text) == tuple(expected)


@pytest.mark.parametrize(
    "text",
    ["", ":", "0", "65536", "80:", "x:80", "80:x", "1:2:3:4", ":1:2", "80/icmp", "80/", "1-2:3",
     "1:2-3", "3-2", "1-2-3", " 80", "+80", "٨٠", "1.2.3:80:80", "::1:80:80", "[::1]80:80",
     "[1.2.3.4]:80:80", "[::]:80:80", "[::1:80:80", "080808:80"],
)  # fmt: skip
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_publish(text)


@given(st.text(alphabet="0123456789:-./[]udptc", max_size=20))
def test_a_port_is_understood_or_refused(text: str) -> None:
    try:
        found = parse_publish(text)
    except UsageError:
        return
    assert found
    assert all(0 < one.port < 65536 and 0 <= one.host_port < 65536 for one in found)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["80:80", "80:81"], "80/tcp is published twice"),
        (["127.0.0.1:80:80", "80:81"], "80/tcp is published twice"),
        (["127.0.0.1:80:80", "127.0.0.2:80:80", "80:80/udp", "80", "80"], None),
        (["[fd00::1]:80:80"], "leads to no network that has IPv6"),
    ],
    ids=["same", "one within all", "all different", "no IPv6"],
)
def test_ports_of_one_container_do_not_collide(texts: list[str], message: str | None) -> None:
    publications = [one for text in texts for one in parse_publish(text)]
    given_ = ("0" * 16, network(), parse_address("10.90.0.2"))
    if message is None:
        assert plan_attachment(*given_, publications=publications).publications == tuple(
            publications
        )
    else:
        with pytest.raises(UsageError, match=message):
            plan_attachment(*given_, publications=publications)


def test_the_ipv6_loopback_can_not_be_published() -> None:
    with pytest.raises(UsageError, match="passes on nothing that is for ::1"):
        plan_attachment(
            "0" * 16,
            network(subnet6=parse_subnet("fd00::/64")),
            parse_address("10.90.0.2"),
            publications=parse_publish("[::1]:80:80"),
        )


# -- rates and names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [("100mbit", 10**8), ("1.5Gbit", 1_500_000_000), ("512kbit", 512_000), ("9000bit", 9000)],
)
def test_a_rate_is_read_as_tc_reads_it(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "100", "mbit", "1.mbit", ".5mbit", "1e3bit", "-1mbit", "1bit", "2000gbit", "1mb"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rate(text)


def test_a_hosts_file_has_localhost_and_what_it_is_given() -> None:
    net = network(subnet6=parse_subnet("fd00::/64"))
    mine = plan_attachment("a" * 16, net, parse_address("10.90.0.2"))
    other = plan_attachment("b" * 16, network(), parse_address("10.90.0.3"))
    names = {"a" * 16: [b"web", b"web.local"], "b" * 16: [b"db"]}
    gateway = parse_add_host("me:host-gateway", gateway=net.gateway)
    assert emit_hosts([*hosts_of([mine, other], names), gateway]) == (
        b"127.0.0.1\tlocalhost\n"
        b"::1\tlocalhost ip6-localhost ip6-loopback\n"
        b"10.90.0.2\tweb web.local\n"
        b"fd00::2\tweb web.local\n"
        b"10.90.0.3\tdb\n"
        b"10.90.0.1\tme\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("db:10.0.0.7", "10.0.0.7"), ("db:fd00::7", "fd00::7"), ("db:[fd00::7]", "fd00::7")],
)
def test_a_host_is_added_by_name_and_address(text: str, expected: str) -> None:
    assert parse_add_host(text, gateway=None) == Host(
        address=parse_address(expected), names=(b"db",)
    )


@pytest.mark.parametrize(
    "text", ["db", ":1.2.3.4", "db:", "db:x", "db:host-gateway", "a b:1.2.3.4", "a\nb:1.2.3.4"]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_add_host(text, gateway=None)


def test_connecting_imports_nothing_slow() -> None:
    code = "import layerstore.runtime.connect, sys; print(*sys.modules)"
    command = [sys.executable, "-I", "-c", code]
    loaded = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    bare = [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"]
    base = set(subprocess.run(bare, check=True, capture_output=True, text=True).stdout.split())
    slow = {"socket", "ipaddress", "ctypes", "json", "typing", "dataclasses", "selectors", "enum"}
    assert (loaded - base) & slow == set()
