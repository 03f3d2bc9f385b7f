"""Real bridges, pairs and packet filter rules, in network namespaces of the test's own.

The process itself moves into a namespace that plays the host; containers and neighbours are further
ones. A socket belongs to the namespace that it was made in, so one process plays all parties.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from abilities import needs_root, needs_tool

from layerstore.errors import ConflictError, HostError
from layerstore.kernel.addresses import format_address, parse_address
from layerstore.kernel.namespaces import NEWNET, unshare
from layerstore.kernel.netlink import InNetwork, enter_network, open_network
from layerstore.kernel.nft import Nftables
from layerstore.kernel.rtnetlink import Address, Route, Rtnetlink
from layerstore.runtime.connect import (
    connect,
    disconnect,
    lease_address,
    leases,
    remove_network,
    reserve_ports,
    resources,
)
from layerstore.runtime.network import (
    Attachment,
    Network,
    parse_publish,
    parse_subnet,
    plan_attachment,
    plan_network,
)

pytestmark = [needs_root, needs_tool("ip", "nft", "ping", "nsenter")]

OUTSIDE, HOST_OUTSIDE = "198.51.100.2", "198.51.100.1"
NO_ANSWER_S = 0.4


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout


# Any: what a foreign program prints as JSON.
def ip(*argv: str) -> Any:
    return json.loads(run("ip", "-j", *argv) or "[]")


def nft(kind: str) -> list[Any]:
    found = json.loads(run("nft", "-j", "list", "ruleset"))["nftables"]
    return [item[kind] for item in found if kind in item]


def nft_elements() -> int:
    return sum(len(item.get("elem", [])) for kind in ("set", "map") for item in nft(kind))


class Space:
    """A network namespace, kept by a sleeping process, as a container's is by its command."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(["unshare", "-n", "sleep", "600"])
        self.pid = self._process.pid
        own = os.readlink("/proc/thread-self/ns/net")
        while os.readlink(f"/proc/{self.pid}/ns/net") == own:
            time.sleep(0.001)
        self.fd = open_network(self.pid)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *argv: str) -> str:
        return run("nsenter", f"--net=/proc/{self.pid}/ns/net", *argv)

    # Any: as above.
    def ip(self, *argv: str) -> Any:
        return json.loads(self.run("ip", "-j", *argv))

    def end(self) -> None:
        if self._process.poll() is None:
            os.close(self.fd)
            self._process.kill()
            self._process.wait()


class World:
    """The host, and what was made on it."""

    def __init__(self, directory: Path) -> None:
        self.leases = str(directory)
        self.spaces: list[Space] = []
        self.networks: list[Network] = []

    def space(self) -> Space:
        self.spaces.append(Space())
        return self.spaces[-1]

    def network(self, name: str = "net", subnet6: str | None = None) -> Network:
        six = None if subnet6 is None else parse_subnet(subnet6)
        self.networks.append(plan_network(name, existing=self.networks, subnet6=six))
        return self.networks[-1]

    def plan(self, network: Network, *publish: str, rate: int | None = None) -> Attachment:
        container_id = os.urandom(8).hex()
        address = lease_address(self.leases, network, owner=container_id)
        publications = [one for text in publish for one in parse_publish(text)]
        return plan_attachment(container_id, network, address, publications=publications, rate=rate)

    def container(
        self, network: Network, *publish: str, rate: int | None = None
    ) -> tuple[Space, Attachment]:
        space, attachment = self.space(), self.plan(network, *publish, rate=rate)
        connect(space.fd, [attachment])
        return space, attachment

    def neighbour(self) -> Space:
        """Another machine on the network of the host's own interface."""
        space = self.space()
        run("ip", "link", "add", "ext", "type", "veth", "peer", "name", "eth0", "netns",
            str(space.pid))  # fmt: skip
        run("ip", "address", "add", f"{HOST_OUTSIDE}/24", "dev", "ext")
        run("ip", "address", "add", "2001:db8::1/64", "dev", "ext", "nodad")
        run("ip", "link", "set", "ext", "up")
        space.run("ip", "address", "add", f"{OUTSIDE}/24", "dev", "eth0")
        space.run("ip", "address", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
        space.run("ip", "link", "set", "eth0", "up")
        return space

    def sysctl(self, name: str, value: str) -> None:
        Path("/proc/sys/net", name).write_text(value)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    unshare(NEWNET)
    world = World(tmp_path / "leases")
    try:
        run("ip", "link", "set", "lo", "up")
        world.sysctl("ipv4/ip_forward", "0")
        yield world
    finally:
        for space in world.spaces:
            space.end()
        enter_network(home)
        os.close(home)


def made_in(space: Space | None, address: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with InNetwork(space.fd) if space else contextlib.nullcontext():
        made = socket.socket(family, kind)
    made.settimeout(NO_ANSWER_S)
    return made


@contextlib.contextmanager
def listening(space: Space | None, port: int, address: str = "0.0.0.0") -> Iterator[socket.socket]:
    with made_in(space, address) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen()
        yield server


def meets(server: socket.socket, client: Space | None, address: str, port: int) -> str | None:
    """The address that the server sees its client at; None if the client gets no connection."""
    with made_in(client, address) as one:
        try:
            one.connect((address, port))
        except (TimeoutError, OSError):
            return None
        accepted, peer = server.accept()
        with accepted:
            accepted.sendall(b"hello")
            assert one.recv(5) == b"hello"
        return str(peer[0])


# -- what is set up --------------------------------------------------------------------------------


def test_iproute_sees_a_container_on_its_bridge(world: World) -> None:
    network = world.network()
    space, attachment = world.container(network)
    eth0 = space.ip("address", "show", "eth0")[0]
    assert (eth0["operstate"], eth0["mtu"], eth0["address"]) == ("UP", 1500, "02:6c:0a:5a:00:02")
    assert [(a["local"], a["prefixlen"], a["broadcast"]) for a in eth0["addr_info"]] == [
        ("10.90.0.2", 22, "10.90.3.255")
    ]
    routes = [(r["dst"], r.get("gateway"), r["dev"]) for r in space.ip("route")]
    assert routes == [("default", "10.90.0.1", "eth0"), ("10.90.0.0/22", None, "eth0")]
    bridge = ip("-d", "address", "show", "ls-br0")[0]
    assert (bridge["linkinfo"]["info_kind"], bridge["address"]) == ("bridge", "02:6c:0a:5a:00:01")
    assert [(a["local"], a["prefixlen"]) for a in bridge["addr_info"]] == [("10.90.0.1", 22)]
    port = ip("link", "show", attachment.link)[0]
    assert (port["master"], port["operstate"]) == ("ls-br0", "UP")


def test_nft_sees_every_rule_as_it_is_meant(world: World) -> None:
    world.container(world.network(), "8080:80", "127.0.0.1:53:5353/udp")
    chains = {c["name"]: (c.get("type"), c.get("hook"), c.get("prio")) for c in nft("chain")}
    assert chains == {
        "loopback": ("filter", "prerouting", -300),
        "published": (None, None, None),
        "prerouting": ("nat", "prerouting", -100),
        "output": ("nat", "output", -100),
        "postrouting": ("nat", "postrouting", 100),
        "forward": ("filter", "forward", 0),
        "guard": ("filter", "forward", 1),
    }
    elements = {item["name"]: item["elem"] for kind in ("set", "map") for item in nft(kind)
                if "elem" in item}  # fmt: skip
    assert elements == {
        "bridges": ["ls-br0"],
        "same": [{"concat": ["ls-br0", "ls-br0"]}],
        "subnets4": [{"prefix": {"addr": "10.90.0.0", "len": 22}}],
        "ports4": [[{"concat": ["tcp", 8080]}, {"concat": ["10.90.0.2", 80]}]],
        "ports4_on": [[{"concat": ["127.0.0.1", "udp", 53]}, {"concat": ["10.90.0.2", 5353]}]],
    }
    lines = [line.strip() for line in run("nft", "list", "ruleset").splitlines()]
    rules = [line for line in lines if any(
        verdict in line for verdict in (" drop", " accept", " jump", "dnat ip", "masquerade")
    ) and "policy" not in line]  # fmt: skip
    assert rules == [
        "iifname @bridges ip daddr 127.0.0.0/8 drop",
        "iifname @bridges ip saddr 127.0.0.0/8 drop",
        "dnat ip to ip daddr . meta l4proto . th dport map @ports4_on",
        "meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports4",
        "dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6_on",
        "meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports6",
        "fib daddr type local jump published",
        "fib daddr type local jump published",
        "ip saddr 127.0.0.0/8 oifname @bridges masquerade",
        "ip saddr @subnets4 oifname != @bridges masquerade",
        "ip saddr @subnets4 ct status dnat masquerade",
        "ip6 saddr @subnets6 oifname != @bridges masquerade",
        "ip6 saddr @subnets6 ct status dnat masquerade",
        "iifname . oifname @same accept",
        "oifname @bridges ct state established,related accept",
        "oifname @bridges ct status dnat accept",
        "oifname @bridges drop",
        "iifname @bridges accept",
        "oifname @bridges accept",
        "meta nfproto ipv4 drop",
    ]


def test_connecting_costs_a_few_milliseconds(world: World) -> None:
    network = world.network()
    world.container(network)  # the bridge and the rules are there from now on
    took = []
    for number in range(9):
        space, attachment = world.space(), world.plan(network, f"{9000 + number}:80")
        start = time.perf_counter()
        connect(space.fd, [attachment])
        took.append(time.perf_counter() - start)
    assert statistics.median(took) < 0.010  # 2 ms on an idle machine


# -- who reaches whom ------------------------------------------------------------------------------


def test_two_containers_of_a_network_ping_and_connect(world: World) -> None:
    network = world.network()
    one, _ = world.container(network)
    other, attachment = world.container(network)
    address = format_address(attachment.address)
    assert " 0% packet loss" in one.run("ping", "-c", "2", "-i", "0.1", "-W", "2", address)
    with listening(other, 80) as server:
        assert meets(server, one, address, 80) == "10.90.0.2"


def test_a_container_and_its_host_reach_each_other(world: World) -> None:
    space, attachment = world.container(world.network())
    world.neighbour()
    with listening(None, 80) as server:
        assert meets(server, space, "10.90.0.1", 80) == "10.90.0.2"
        assert meets(server, space, HOST_OUTSIDE, 80) == "10.90.0.2"
    with listening(space, 80) as server:
        assert meets(server, None, format_address(attachment.address), 80) == "10.90.0.1"


def test_the_outside_sees_the_host_where_a_container_calls(world: World) -> None:
    outside = world.neighbour()
    space, _ = world.container(world.network())
    with listening(outside, 80) as server:
        assert meets(server, space, OUTSIDE, 80) == HOST_OUTSIDE


@pytest.mark.parametrize("bridge_filter", ["0", "1"], ids=["plain", "bridge-nf-call-iptables"])
def test_a_published_port_is_reached_from_everywhere(world: World, bridge_filter: str) -> None:
    setting = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if setting.exists():
        setting.write_text(bridge_filter)
    elif bridge_filter == "1":
        pytest.skip("needs br_netfilter")
    outside, network = world.neighbour(), world.network()
    space, _ = world.container(network, "8080:80")
    friend, _ = world.container(network)
    stranger, _ = world.container(world.network("other"))
    with listening(space, 80) as server:
        seen = {
            "outside": meets(server, outside, HOST_OUTSIDE, 8080),
            "host": meets(server, None, HOST_OUTSIDE, 8080),
            "loopback": meets(server, None, "127.0.0.1", 8080),
            "bridge": meets(server, None, "10.90.0.1", 8080),
            "itself": meets(server, space, HOST_OUTSIDE, 8080),
            "itself by its gateway": meets(server, space, "10.90.0.1", 8080),
            "friend": meets(server, friend, HOST_OUTSIDE, 8080),
            "stranger": meets(server, stranger, HOST_OUTSIDE, 8080),
            "nobody listens there": meets(server, outside, HOST_OUTSIDE, 80),
        }
    gateway = "10.90.0.1"
    assert seen == {
        "outside": OUTSIDE,
        "host": HOST_OUTSIDE,
        "loopback": gateway,
        "bridge": gateway,
        "itself": gateway,
        "itself by its gateway": gateway,
        "friend": gateway,
        "stranger": gateway,
        "nobody listens there": None,
    }


def test_a_port_published_on_one_address_is_not_reached_at_another(world: World) -> None:
    outside = world.neighbour()
    network = world.network()
    inner, _ = world.container(network, "127.0.0.1:8080:80")
    outer, _ = world.container(network, f"{HOST_OUTSIDE}:8080:80")
    with listening(inner, 80) as server:
        assert meets(server, None, "127.0.0.1", 8080) == "10.90.0.1"
    with listening(outer, 80) as server:
        assert meets(server, outside, HOST_OUTSIDE, 8080) == OUTSIDE
        assert meets(server, outside, "10.90.0.1", 8080) is None


def test_udp_is_published_as_well(world: World) -> None:
    space, _ = world.container(world.network(), "5300:53/udp")
    with (
        made_in(space, "0.0.0.0", socket.SOCK_DGRAM) as server,
        made_in(None, "127.0.0.1", socket.SOCK_DGRAM) as client,
    ):
        server.bind(("0.0.0.0", 53))
        client.sendto(b"name?", ("127.0.0.1", 5300))
        question, peer = server.recvfrom(100)
        server.sendto(b"answer", peer)
        assert (question, client.recvfrom(100)) == (b"name?", (b"answer", ("127.0.0.1", 5300)))


def test_networks_do_not_reach_each_other_nor_does_the_outside_reach_in(world: World) -> None:
    outside = world.neighbour()
    one, first = world.container(world.network("one"))
    other, second = world.container(world.network("other"))
    outside.run("ip", "route", "add", "10.90.0.0/16", "via", HOST_OUTSIDE)
    for client, server_space, attachment in (
        (one, other, second), (other, one, first), (outside, one, first),
    ):  # fmt: skip
        with listening(server_space, 80) as server:
            assert meets(server, client, format_address(attachment.address), 80) is None
    run("nft", "flush", "chain", "inet", "layerstore", "forward")
    with listening(other, 80) as server:  # it was the rules
        assert meets(server, one, format_address(second.address), 80) == "10.90.0.2"


def test_cve_2020_8558_a_container_does_not_reach_the_loopback_of_its_host(world: World) -> None:
    space, _ = world.container(world.network())
    with made_in(None, "127.0.0.1", socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 5353))
        _send_to_loopback(space, "10.90.0.2")
        _send_to_loopback(space, "127.0.0.1")
        with pytest.raises(TimeoutError):
            server.recvfrom(100)
        run("nft", "flush", "chain", "inet", "layerstore", "loopback")
        _send_to_loopback(space, "10.90.0.2")
        assert server.recvfrom(100)[0] == b"gotcha"  # it was the rule


def _send_to_loopback(space: Space, source: str) -> None:
    """A frame to the bridge, whose packet is for 127.0.0.1 port 5353."""
    with InNetwork(space.fd):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with raw:
        raw.bind(("eth0", 0))
        datagram = struct.pack("!HHHH", 4000, 5353, 8 + 6, 0) + b"gotcha"
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0)
        head += parse_address(source) + parse_address("127.0.0.1")
        words = sum(struct.unpack("!10H", head))
        checksum = ~((words & 0xFFFF) + (words >> 16)) & 0xFFFF
        head = head[:10] + struct.pack("!H", checksum) + head[12:]
        macs = bytes.fromhex("026c0a5a0001") + bytes.fromhex("026c0a5a0002")
        raw.send(macs + b"\x08\x00" + head + datagram)


def test_cve_2020_13401_a_container_is_no_router_of_its_host(world: World) -> None:
    space, _ = world.container(world.network())
    six, _ = world_container6(world)
    accepts = {
        name: Path(f"/proc/sys/net/ipv6/conf/{name}").read_text().strip()
        for name in ("ls-br0/disable_ipv6", "ls-br1/accept_ra", "ls-br1/disable_ipv6")
    }
    assert accepts == {
        "ls-br0/disable_ipv6": "1", "ls-br1/accept_ra": "0", "ls-br1/disable_ipv6": "0",
    }  # fmt: skip
    assert space.run("sysctl", "-n", "net.ipv6.conf.eth0.disable_ipv6") == "1\n"
    assert six.run("sysctl", "-n", "net.ipv6.conf.eth0.accept_ra") == "0\n"


def world_container6(world: World, *publish: str) -> tuple[Space, Attachment]:
    world.sysctl("ipv6/conf/all/forwarding", "1")
    return world.container(world.network("six", "fd00:5a::/64"), *publish)


# -- IPv6 ------------------------------------------------------------------------------------------


def test_a_network_with_ipv6_connects_isolates_and_publishes(world: World) -> None:
    outside = world.neighbour()
    space, attachment = world_container6(world, "8080:80")
    friend, _ = world.container(world.networks[0])
    stranger, _ = world.container(world.network("stranger", "fd00:5b::/64"))
    assert attachment.address6 == parse_address("fd00:5a::2")
    outside.run("ip", "route", "add", "fd00:5a::/64", "via", "2001:db8::1")
    with listening(space, 80, "::") as server:
        seen = {
            "friend": meets(server, friend, "fd00:5a::2", 80),
            "host": meets(server, None, "fd00:5a::2", 80),
            "published": meets(server, outside, "2001:db8::1", 8080),
            "itself": meets(server, space, "2001:db8::1", 8080),
            "stranger": meets(server, stranger, "fd00:5a::2", 80),
            "outside, not published": meets(server, outside, "fd00:5a::2", 80),
        }
    assert seen == {
        "friend": "fd00:5a::3",
        "host": "fd00:5a::1",
        "published": "2001:db8::2",
        "itself": "fd00:5a::1",
        "stranger": None,
        "outside, not published": None,
    }
    with listening(outside, 80, "::") as server:
        assert meets(server, space, "2001:db8::2", 80) == "2001:db8::1"


def test_ipv6_forwarding_is_never_turned_on_behind_the_hosts_back(world: World) -> None:
    world.sysctl("ipv6/conf/all/forwarding", "0")
    space, network = world.space(), world.network("six", "fd00:5a::/64")
    with pytest.raises(HostError, match="does not forward IPv6"):
        connect(space.fd, [world.plan(network)])
    assert Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text() == "0\n"


# -- the host stays what it was --------------------------------------------------------------------


def test_forwarding_that_was_turned_on_is_for_networks_alone(world: World) -> None:
    left = world.neighbour()
    right = world.space()
    run("ip", "link", "add", "ext2", "type", "veth", "peer", "name", "eth0", "netns",
        str(right.pid))  # fmt: skip
    run("ip", "address", "add", "203.0.113.1/24", "dev", "ext2")
    run("ip", "link", "set", "ext2", "up")
    right.run("ip", "address", "add", "203.0.113.2/24", "dev", "eth0")
    right.run("ip", "link", "set", "eth0", "up")
    right.run("ip", "route", "add", "default", "via", "203.0.113.1")
    left.run("ip", "route", "add", "default", "via", HOST_OUTSIDE)
    network = world.network()
    space, attachment = world.container(network)
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
    with listening(right, 80) as server:
        assert meets(server, left, "203.0.113.2", 80) is None
        assert meets(server, space, "203.0.113.2", 80) == "203.0.113.1"
    disconnect(resources(attachment, world.leases))
    remove_network(network)
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "0\n"


def test_a_host_that_forwards_already_goes_on_doing_so(world: World) -> None:
    world.sysctl("ipv4/ip_forward", "1")
    network = world.network()
    _, attachment = world.container(network)
    assert "guard" not in {chain["name"] for chain in nft("chain")}
    disconnect(resources(attachment, world.leases))
    remove_network(network)
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"


def test_nothing_is_left_of_a_container_or_a_network(world: World) -> None:
    network = world.network()
    space, attachment = world.space(), world.plan(network, "8080:80", "5000-5009:5000-5009/udp")
    recorded = resources(attachment, world.leases)
    assert len(recorded) == 13
    connect(space.fd, [attachment])
    assert nft_elements() == 3 + 11
    disconnect(recorded)
    assert [link["ifname"] for link in ip("link")] == ["lo", "ls-br0"]
    assert [link["ifname"] for link in space.ip("link")] == ["lo"]
    assert nft_elements() == 3
    assert leases(world.leases) == {}
    disconnect(recorded)
    remove_network(network)
    assert [link["ifname"] for link in ip("link")] == ["lo"]
    assert run("nft", "list", "ruleset") == ""
    remove_network(network)


def test_what_was_recorded_and_never_made_is_cleaned_up_as_well(world: World) -> None:
    attachment = world.plan(world.network(), "8080:80")
    disconnect(resources(attachment, world.leases))
    assert leases(world.leases) == {}


def test_the_interfaces_of_an_ending_container_go_with_it(world: World) -> None:
    network = world.network()
    space, attachment = world.container(network, "8080:80")
    space.end()
    with Nftables() as late:
        disconnect(resources(attachment, world.leases), is_ending=True, nft=late)
        assert nft_elements() == 3
    deadline = time.monotonic() + 5
    while len(ip("link")) > 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [link["ifname"] for link in ip("link")] == ["lo", "ls-br0"]
    space, again = world.container(network, "8080:80")
    assert again.address == attachment.address
    with listening(space, 80) as server:
        assert meets(server, None, "127.0.0.1", 8080) == "10.90.0.1"


def test_a_network_in_use_is_not_removed(world: World) -> None:
    network = world.network()
    world.container(network)
    with pytest.raises(ConflictError, match="a container is on the network 'net'"):
        remove_network(network)


def test_a_flushed_packet_filter_is_whole_again_with_the_next_container(world: World) -> None:
    network = world.network()
    world.container(network)
    run("nft", "flush", "ruleset")
    outside = world.neighbour()
    space, _ = world.container(network)
    with listening(outside, 80) as server:
        assert meets(server, space, OUTSIDE, 80) == HOST_OUTSIDE


def test_containers_that_start_at_once_share_the_first_bridge(world: World) -> None:
    network = world.network()
    spaces = [world.space() for _ in range(6)]
    plans = [world.plan(network, f"{7000 + number}:80") for number in range(6)]
    failures: list[BaseException] = []

    def start(space: Space, attachment: Attachment) -> None:
        try:
            connect(space.fd, [attachment])
        except BaseException as error:
            failures.append(error)

    # A thread is in its maker's namespace.
    threads = [
        threading.Thread(target=start, args=pair) for pair in zip(spaces, plans, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(ip("link", "show", "master", "ls-br0")) == 6
    for space, attachment in zip(spaces, plans, strict=True):
        with listening(space, 80) as server:
            port = attachment.publications[0].host_port
            assert meets(server, None, "127.0.0.1", port) == "10.90.0.1"


# -- ports and addresses that are taken ------------------------------------------------------------


def test_a_port_published_twice_stays_with_the_first(world: World) -> None:
    network = world.network()
    first, _ = world.container(network, "8080:80")
    second, late = world.space(), world.plan(network, "8080:80", "9090:80")
    with pytest.raises(ConflictError, match="the port 8080/tcp is published already"):
        connect(second.fd, [late])
    disconnect(resources(late, world.leases))
    assert [link["ifname"] for link in second.ip("link")] == ["lo"]
    assert nft_elements() == 4
    with listening(first, 80) as server:
        assert meets(server, None, "127.0.0.1", 8080) == "10.90.0.1"


def test_a_port_that_a_program_has_is_not_published(world: World) -> None:
    attachment = world.plan(world.network(), "8080:80")
    with listening(None, 8080, "127.0.0.1"), pytest.raises(ConflictError, match="8080/tcp is in"):
        reserve_ports(attachment)
    reserved, fds = reserve_ports(attachment)
    assert reserved == attachment
    with pytest.raises(OSError, match="Address already in use"), listening(None, 8080):
        pass  # not reached
    for fd in fds:
        os.close(fd)
    with listening(None, 8080):
        pass


def test_a_free_port_is_found_where_none_is_named(world: World) -> None:
    network = world.network()
    space, wanted = world.space(), world.plan(network, "80")
    reserved, fds = reserve_ports(wanted)
    port = reserved.publications[0].host_port
    assert 1024 <= port <= 65535
    connect(space.fd, [reserved])
    with listening(space, 80) as server:
        assert meets(server, None, "127.0.0.1", port) == "10.90.0.1"
    for fd in fds:
        os.close(fd)


def test_a_port_of_an_address_that_the_host_lacks_is_refused(world: World) -> None:
    attachment = world.plan(world.network(), "192.0.2.9:8080:80")
    with pytest.raises(HostError, match=r"8080/tcp of 192\.0\.2\.9 can't be published"):
        reserve_ports(attachment)


def test_an_address_has_one_owner_and_only_that_one_releases_it(tmp_path: Path) -> None:
    directory = str(tmp_path / "leases")
    network = plan_network("net", existing=())
    first = lease_address(directory, network, owner="first")
    assert (first, lease_address(directory, network, owner="second")) == (
        b"\x0a\x5a\0\2", b"\x0a\x5a\0\3",
    )  # fmt: skip
    with pytest.raises(ConflictError, match=r"10\.90\.0\.2 is in use"):
        lease_address(directory, network, owner="third", wanted=first)
    disconnect([f"lease second {directory}/10.90.0.2"])
    assert leases(directory) == {first: "first", b"\x0a\x5a\0\3": "second"}
    disconnect([f"lease first {directory}/10.90.0.2"])
    assert lease_address(directory, network, owner="third") == first


# -- rates -----------------------------------------------------------------------------------------


@needs_tool("tc")
def test_a_rate_limits_both_directions(world: World) -> None:
    network = world.network()
    space, attachment = world.container(network, rate=40_000_000)
    queues = json.loads(run("tc", "-j", "qdisc", "show", "dev", attachment.link))
    assert (queues[0]["kind"], queues[0]["options"]["rate"]) == ("tbf", 5_000_000)
    with listening(space, 80) as server:
        into = _seconds(server, None, format_address(attachment.address))
    with listening(None, 80) as server:
        out = _seconds(server, space, "10.90.0.1")
    # 2 MB at 5 MB/s, of which the first 64 KiB are free.
    assert 0.3 < into < 1.0
    assert 0.3 < out < 1.0


def test_without_a_rate_nothing_is_limited(world: World) -> None:
    space, attachment = world.container(world.network())
    with listening(space, 80) as server:
        assert _seconds(server, None, format_address(attachment.address)) < 0.25


def _seconds(server: socket.socket, client: Space | None, address: str) -> float:
    """How long 2 MB take from the client to the server."""
    with made_in(client, address) as one:
        one.connect((address, 80))
        accepted, _ = server.accept()
        one.settimeout(20)

        def send() -> None:
            one.sendall(bytes(2_000_000))
            one.shutdown(socket.SHUT_WR)

        start = time.perf_counter()
        sender = threading.Thread(target=send)
        sender.start()
        with accepted:
            accepted.settimeout(20)
            while accepted.recv(1 << 16):
                pass
        sender.join()
        return time.perf_counter() - start


# -- rtnetlink by itself ---------------------------------------------------------------------------


def test_links_change_as_iproute_sees_them(world: World) -> None:
    with Rtnetlink() as route:
        route.add_bridge("b0", mac=bytes.fromhex("020000000001"), mtu=1400)
        index = route.link("b0").index
        route.set_link(index, name="b1", mtu=1300, mac=bytes.fromhex("020000000002"), up=True)
        seen = ip("-d", "link", "show", "b1")[0]
        assert (seen["mtu"], seen["address"]) == (1300, "02:00:00:00:00:02")
        assert "UP" in seen["flags"]
        link = route.link("b1")
        assert (link.index, link.kind, link.is_up, link.mtu) == (index, "bridge", True, 1300)
        assert [one.name for one in route.links()] == ["lo", "b1"]
        route.delete_link(index)
        assert route.try_link("b1") is None


def test_a_link_moves_to_another_namespace_and_off_its_bridge(world: World) -> None:
    space = world.space()
    with Rtnetlink() as route, Rtnetlink(netns_fd=space.fd) as inside:
        route.add_bridge("b0", mac=bytes.fromhex("020000000001"), mtu=1500)
        bridge = route.link("b0").index
        route.add_veth("v0", mtu=1500, peer="p0", peer_mac=bytes.fromhex("020000000003"),
                       peer_netns_fd=space.fd)  # fmt: skip
        port = route.link("v0")
        assert (port.kind, port.master) == ("veth", None)
        route.set_link(port.index, master=bridge)
        assert ip("link", "show", "v0")[0]["master"] == "b0"
        route.set_link(port.index, master=0)
        assert "master" not in ip("link", "show", "v0")[0]
        route.set_link(port.index, netns_fd=space.fd)
        assert [link.name for link in inside.links()] == ["lo", "p0", "v0"]


def test_addresses_and_routes_are_listed_added_and_deleted(world: World) -> None:
    four, six = parse_address("10.1.0.1"), parse_address("fd00::1")
    with Rtnetlink() as route:
        assert route.routes() == []
        route.add_bridge("b0", mac=bytes.fromhex("020000000001"), mtu=1500)
        index = route.link("b0").index
        route.set_link(index, up=True, link_local=False)
        route.add_address(index, four, 24)
        route.add_address(index, six, 64)
        assert route.addresses(index) == [
            Address(index=index, address=four, prefix=24),
            Address(index=index, address=six, prefix=64),
        ]
        far, gateway = parse_address("10.2.0.0"), parse_address("10.1.0.9")
        route.add_route(far, 16, index=index, gateway=gateway)
        assert [(r["dst"], r["gateway"]) for r in ip("route", "show", "10.2.0.0/16")] == [
            ("10.2.0.0/16", "10.1.0.9")
        ]
        assert Route(destination=far, prefix=16, gateway=gateway, index=index) in route.routes()
        route.delete_route(far, 16, index=index, gateway=gateway)
        route.delete_address(index, four, 24)
        assert route.routes() == []
        assert [one.address for one in route.addresses(index)] == [six]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda r: r.delete_link(4711), r"No such device.*delete link 4711"),
        (lambda r: r.link("nope"), r"No such device.*get link nope"),
        (
            lambda r: r.set_link(1, mtu=2**31 - 1, master=1),
            r"\[Errno \d+\] .*set link 1 mtu 2147483647 master 1",
        ),
        (
            lambda r: r.add_route(bytes(4), 0, index=1, gateway=b"\1\2\3\4"),
            r"Nexthop has invalid gateway.*add route 00000000/0 link 1",
        ),
        (lambda r: r.set_rate(4711, 10**6), r"limit link 4711 to 1000000 bit/s"),
        (lambda r: r.unset_rate(1), r"unlimit link 1"),
    ],
    ids=["delete", "get", "set", "route", "rate", "no rate"],
)
# Any: a lambda of the table.
def test_an_error_names_the_request_and_has_the_kernels_reason(
    world: World, request_: Any, message: str
) -> None:
    with Rtnetlink() as route:
        with pytest.raises(OSError, match=message):
            request_(route)
        assert route.link("lo").index == 1  # and the socket goes on working


def test_entering_another_namespace_ends_with_the_block(world: World) -> None:
    space = world.space()
    home = os.readlink("/proc/thread-self/ns/net")
    with contextlib.suppress(ZeroDivisionError), InNetwork(space.fd):
        assert os.readlink("/proc/thread-self/ns/net") == os.readlink(f"/proc/{space.pid}/ns/net")
        raise ZeroDivisionError
    assert os.readlink("/proc/thread-self/ns/net") == home
