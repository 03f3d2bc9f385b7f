"""Connects containers to networks, and takes them off again.

Everything that a container gets is named by ``resources`` before it exists, as lines of text for
the container's state; ``disconnect`` undoes what such lines name, however much of it is there::

    veth LINK                                     the pair of interfaces
    port PROTOCOL ADDRESS|* PORT ADDRESS PORT     an element of the packet filter's maps
    lease OWNER PATH                              the file that holds the container's address

A lease is a file of the network's directory, named by the address; it ends last, so that nobody
else has the address while anything still leads to it. Leases, like all the rest, end with the
host: keep them below /run.
"""

from __future__ import annotations

import _socket
import errno
import os
import time

from layerstore.errors import ConflictError, HostError
from layerstore.kernel.addresses import format_address, parse_address
from layerstore.kernel.netlink import InNetwork
from layerstore.kernel.nft import Nftables, Port, Segment
from layerstore.kernel.rtnetlink import Rtnetlink
from layerstore.runtime.network import (
    Attachment,
    check_wanted_address,
    free_addresses,
    mac_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerstore.runtime.network import Network, Publication

_SYSCTL = "/proc/sys/net/"
_ANY_PORT_ATTEMPTS = 100
_CARRIER_PATIENCE_S = 2.0


# -- addresses -------------------------------------------------------------------------------------


def lease_address(
    directory: str, network: Network, *, owner: str, wanted: bytes | None = None
) -> bytes:
    """An address of the network that is the owner's until the lease is released.

    Raises ConflictError if the wanted one is somebody else's, HostError if none is free.
    """
    os.makedirs(directory, exist_ok=True)
    if wanted is not None:
        check_wanted_address(wanted, network)
        if not _try_lease(directory, wanted, owner):
            raise ConflictError(
                f"the address {format_address(wanted)} is in use",
                hint="choose another one, or none to have a free one chosen",
            )
        return wanted
    taken = set(leases(directory))
    for address in free_addresses(network.subnet, gateway=network.gateway, taken=taken):
        if _try_lease(directory, address, owner):
            return address
    raise HostError(
        f"no address of the network {network.name!r} is free",
        hint="remove containers that are not needed, or use another network",
    )


def leases(directory: str) -> dict[bytes, str]:
    """Address → owner. Who removes containers can tell which leases outlived theirs."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return {}
    found = {}
    for name in names:
        owner = _owner(f"{directory}/{name}")
        if owner is not None:
            found[parse_address(name)] = owner
    return found


def release_lease(path: str, owner: str) -> None:
    """The address is free, unless it is somebody else's."""
    if _owner(path) == owner:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _try_lease(directory: str, address: bytes, owner: str) -> bool:
    # A symbolic link exists with its content or not at all.
    try:
        os.symlink(owner, f"{directory}/{format_address(address)}")
    except FileExistsError:
        return False
    return True


def _owner(path: str) -> str | None:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None


# -- ports -----------------------------------------------------------------------------------------


def reserve_ports(attachment: Attachment) -> tuple[Attachment, list[int]]:
    """The attachment with a port of the host for each 0, and the descriptors that hold them.

    While they are open, no program of the host gets the ports by mistake: it would never be
    reached. Close-on-exec. Raises ConflictError for a port that a program has.
    """
    fds: list[int] = []
    try:
        publications = tuple(_reserve(attachment, one, fds) for one in attachment.publications)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return attachment.replace(publications=publications), fds


def _reserve(attachment: Attachment, one: Publication, fds: list[int]) -> Publication:
    if one.protocol == "sctp":
        if not one.host_port:
            raise HostError("an sctp port can't be chosen freely", hint="say which: HOST:CONTAINER")
        return one
    addresses = [one.host_address] if one.host_address else [bytes(4)]
    if attachment.address6 is not None and one.host_address is None:
        addresses.append(bytes(16))
    for _ in range(_ANY_PORT_ATTEMPTS):
        port = one.host_port
        bound: list[int] = []
        try:
            for address in addresses:
                fd, port = _bind(one.protocol, address, port)
                bound.append(fd)
        except OSError as error:
            for fd in bound:
                os.close(fd)
            if error.errno == errno.EADDRINUSE and bound and not one.host_port:
                continue  # free on IPv4 and not on IPv6: another one, then
            raise _explained(error, one) from error
        fds += bound
        return one.replace(host_port=port)
    raise HostError("no port of the host is free", hint="say which: HOST:CONTAINER")


def _bind(protocol: str, address: bytes, port: int) -> tuple[int, int]:
    family = _socket.AF_INET if len(address) == 4 else _socket.AF_INET6
    kind = _socket.SOCK_STREAM if protocol == "tcp" else _socket.SOCK_DGRAM
    one = _socket.socket(family, kind | _socket.SOCK_CLOEXEC)
    try:
        if kind == _socket.SOCK_STREAM:
            # The last connections of a program that has ended don't count.
            one.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if family == _socket.AF_INET6:
            one.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        one.bind((format_address(address), port))
        if kind == _socket.SOCK_STREAM:
            one.listen(0)  # else a program that reuses addresses, as most do, could have it too
        found: int = one.getsockname()[1]
    except BaseException:
        one.close()
        raise
    return one.detach(), found


def _explained(error: OSError, one: Publication) -> Exception:
    shown = f"{one.host_port}/{one.protocol}"
    if one.host_address is not None:
        shown += f" of {format_address(one.host_address)}"
    if error.errno == errno.EADDRINUSE:
        return ConflictError(
            f"the host's port {shown} is in use", hint="choose another one, or stop what has it"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return HostError(
            f"the port {shown} can't be published: no interface of this host has the address",
            hint="choose one that `ip address` shows, or leave it out",
        )
    return HostError(f"the host's port {shown} can't be published: {error.strerror}")


def _ports(attachment: Attachment) -> list[Port]:
    found = []
    for one in attachment.publications:
        targets = [attachment.address]
        if attachment.address6 is not None:
            targets.append(attachment.address6)
        found += [
            Port(
                protocol=one.protocol,
                host_address=one.host_address,
                host_port=one.host_port,
                address=target,
                port=one.port,
            )
            for target in targets
            if one.host_address is None or len(one.host_address) == len(target)
        ]
    return found


# -- resources -------------------------------------------------------------------------------------


def resources(attachment: Attachment, directory: str) -> tuple[str, ...]:
    """What ``disconnect`` needs; record it before ``connect``, after ``reserve_ports``."""
    owner = attachment.container_id
    ports = [
        f"port {port} {format_address(port.address)} {port.port}" for port in _ports(attachment)
    ]
    lease = f"lease {owner} {directory}/{format_address(attachment.address)}"
    return (f"veth {attachment.link}", *ports, lease)


def disconnect(
    recorded: Sequence[str], *, is_ending: bool = False, nft: Nftables | None = None
) -> None:
    """Nothing that the lines name is left; what is somebody else's stays. May be repeated.

    ``is_ending``: the last process of the container's namespace has ended. The kernel removes the
    interfaces with it, some 20 ms later; they are only taken down, for which nobody waits. Closing
    a socket of the packet filter waits up to 12 ms for what was deleted: who has other things to do
    hands in ``nft``, and closes it last.
    """
    links, ports, leased = _parse_resources(recorded)
    if ports:
        own = Nftables() if nft is None else nft
        try:
            own.withdraw_ports(ports)
        finally:
            if nft is None:
                own.close()
    if links:
        with Rtnetlink() as route:
            for name in links:
                _remove_veth(route, name, is_ending)
    for owner, path in leased:
        release_lease(path, owner)


def _parse_resources(
    recorded: Iterable[str],
) -> tuple[list[str], list[Port], list[tuple[str, str]]]:
    links, ports, leased = [], [], []
    for line in recorded:
        kind, _, rest = line.partition(" ")
        if kind == "veth":
            links.append(rest)
        elif kind == "port":
            protocol, host, host_port, address, port = rest.split(" ")
            ports.append(
                Port(
                    protocol=protocol,
                    host_address=None if host == "*" else parse_address(host),
                    host_port=int(host_port),
                    address=parse_address(address),
                    port=int(port),
                )
            )
        elif kind == "lease":
            owner, _, path = rest.partition(" ")
            leased.append((owner, path))
        else:
            raise ValueError(f"{line!r} is not a resource of a network")
    return links, ports, leased


def _remove_veth(route: Rtnetlink, name: str, is_ending: bool) -> None:
    link = route.try_link(name)
    if link is None or link.kind != "veth":
        return
    try:
        if is_ending:
            route.set_link(link.index, up=False)
        else:
            route.delete_link(link.index)
    except OSError as error:
        if error.errno != errno.ENODEV:  # it went with the container's namespace just now
            raise


# -- networks and containers -----------------------------------------------------------------------


def connect(netns_fd: int, attachments: Sequence[Attachment]) -> None:
    """The container's namespace is on these networks, its ports are published.

    Its loopback is its own business. Raises ConflictError if a port is published already; whatever
    is raised, ``disconnect`` cleans up.
    """
    with Nftables() as nft, Rtnetlink() as route:
        # First: rules must be there before the bridge lets 127/8 through.
        nft.put(
            (_segment(attachment.network) for attachment in attachments),
            (port for attachment in attachments for port in _ports(attachment)),
        )
        _allow_forwarding(nft, attachments)
        bridges = [_ensure_bridge(route, attachment.network) for attachment in attachments]
        with Rtnetlink(netns_fd=netns_fd) as inside:
            for attachment, bridge in zip(attachments, bridges, strict=True):
                _attach(route, inside, netns_fd, attachment, bridge)
            for attachment in attachments:
                _wait_until_operational(inside, attachment.interface)
                _wait_until_operational(route, attachment.link)
                _wait_until_operational(route, attachment.network.bridge)


def _segment(network: Network) -> Segment:
    subnets = [subnet for subnet in (network.subnet, network.subnet6) if subnet is not None]
    return Segment(bridge=network.bridge, subnets=tuple((one.first, one.prefix) for one in subnets))


def _allow_forwarding(nft: Nftables, attachments: Sequence[Attachment]) -> None:
    if _read_sysctl("ipv4/ip_forward") == "0":
        nft.guard()
        _write_sysctl("ipv4/ip_forward", "1")
    if any(a.network.subnet6 for a in attachments) and (
        _read_sysctl("ipv6/conf/all/forwarding") != "1"
    ):
        # Never on our own: the host would stop heeding its router, and lose its default route.
        raise HostError(
            "this host does not forward IPv6, which the network needs",
            hint="sysctl net.ipv6.conf.all.forwarding=1, and accept_ra=2 for the interface that "
            "has its default route from a router; or use a network without IPv6",
        )


def _ensure_bridge(route: Rtnetlink, network: Network) -> int:
    """The bridge's index. It comes up last, so that one that is up is complete."""
    link = route.try_link(network.bridge)
    if link is None:
        try:
            route.add_bridge(network.bridge, mac=mac_of(network.gateway), mtu=network.mtu)
        except OSError as error:
            if error.errno != errno.EEXIST:  # somebody else is making it, too
                raise
        link = route.link(network.bridge)
    if link.kind != "bridge":
        raise ConflictError(
            f"the interface {network.bridge} exists and is no bridge", hint="rename or remove it"
        )
    if link.is_up:
        return link.index
    has_ipv6 = network.subnet6 is not None
    # Containers must not be the host's routers (CVE-2020-13401).
    setting = "accept_ra" if has_ipv6 else "disable_ipv6"
    _write_sysctl(f"ipv6/conf/{network.bridge}/{setting}", "0" if has_ipv6 else "1", may_lack=True)
    _write_sysctl(f"ipv4/conf/{network.bridge}/route_localnet", "1")
    _add_address(route, link.index, network.gateway, network.subnet.prefix)
    if network.subnet6 is not None and network.gateway6 is not None:
        _add_address(route, link.index, network.gateway6, network.subnet6.prefix)
    route.set_link(link.index, up=True)
    return link.index


def _add_address(route: Rtnetlink, index: int, address: bytes, prefix: int) -> None:
    try:
        route.add_address(index, address, prefix)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


def _attach(
    route: Rtnetlink, inside: Rtnetlink, netns_fd: int, attachment: Attachment, bridge: int
) -> None:
    network = attachment.network
    route.add_veth(
        attachment.link,
        master=bridge,
        mtu=network.mtu,
        peer=attachment.interface,
        peer_mac=mac_of(attachment.address),
        peer_netns_fd=netns_fd,
    )
    index = route.link(attachment.link).index
    if attachment.rate is not None:
        route.set_rate(index, attachment.rate)
    if attachment.publications and _read_sysctl("bridge/bridge-nf-call-iptables") == "1":
        # The rules see the frame on the bridge, where what a container sends to its own published
        # port turns back to where it came from.
        route.set_hairpin(index)
    route.set_link(index, up=True, link_local=False)
    has_ipv6 = attachment.address6 is not None
    with InNetwork(netns_fd):  # a sysctl of the network is the opener's
        # Neighbours must not be its routers, either.
        setting = "accept_ra" if has_ipv6 else "disable_ipv6"
        path = f"ipv6/conf/{attachment.interface}/{setting}"
        _write_sysctl(path, "0" if has_ipv6 else "1", may_lack=True)
    own = inside.link(attachment.interface).index
    if attachment.rate is not None:
        inside.set_rate(own, attachment.rate)
    inside.set_link(own, up=True)
    inside.add_address(own, attachment.address, network.subnet.prefix)
    if attachment.is_default:
        inside.add_route(bytes(4), 0, index=own, gateway=network.gateway)
    if attachment.address6 is not None and network.subnet6 is not None:
        inside.add_address(own, attachment.address6, network.subnet6.prefix)
        if attachment.is_default:
            inside.add_route(bytes(16), 0, index=own, gateway=network.gateway6)


def _wait_until_operational(route: Rtnetlink, name: str) -> None:
    """The first packet is not lost, for which a connection would wait a second.

    A new carrier is noticed by a worker of the kernel, or since Linux 6.8 by who asks.
    """
    deadline = time.monotonic() + _CARRIER_PATIENCE_S
    while not route.link(name).is_operational and time.monotonic() < deadline:
        time.sleep(0.001)


def remove_network(network: Network) -> None:
    """Its bridge and rules are gone; with the last network, so is our table. May be repeated.

    The caller sees to it that no container is just being connected. Raises ConflictError while one
    is on the network.
    """
    with Rtnetlink() as route, Nftables() as nft:
        links = route.links()
        bridge = next((link for link in links if link.name == network.bridge), None)
        if bridge is not None and bridge.kind == "bridge":
            if any(link.master == bridge.index for link in links):
                raise ConflictError(
                    f"a container is on the network {network.name!r}", hint="stop it first"
                )
            route.delete_link(bridge.index)
        nft.withdraw_segment(_segment(network))
        if not nft.has_segments():
            if nft.has_guard():
                # We turned it on, and the guard let nobody else use it.
                _write_sysctl("ipv4/ip_forward", "0")
            nft.remove_table()


def _read_sysctl(name: str) -> str | None:
    try:
        with open(_SYSCTL + name) as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def _write_sysctl(name: str, value: str, *, may_lack: bool = False) -> None:
    try:
        fd = os.open(_SYSCTL + name, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if may_lack:  # a kernel without IPv6
            return
        raise
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"write({_SYSCTL}{name}, {value})") from None
    finally:
        os.close(fd)
