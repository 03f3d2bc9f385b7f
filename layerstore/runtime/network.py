"""Networks, decided: which subnet, which address, which ports, which names.

Pure: nothing here touches the host. Addresses are packed bytes, as ``kernel.addresses`` has them.
``connect`` does what these values say.
"""

from __future__ import annotations

import os

from layerstore.errors import ConflictError, HostError, UsageError
from layerstore.kernel.addresses import format_address, parse_address
from layerstore.kernel.nft import PROTOCOLS
from layerstore.kernel.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

DEFAULT_MTU = 1500
_POOL = (b"\x0a\x5a\0\0", 15)
"""10.90.0.0/15: 128 subnets that docker and podman do not hand out by themselves."""
_POOL_PREFIX = 22
"""1,021 containers: a bridge has at most 1,023 ports."""
_MAC_PREFIX = b"\x02\x6c"
_PORT_MAX = 65535
_LOOPBACK6 = bytes(15) + b"\1"
_NAME_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _NAME_FIRST | frozenset("_.-")
_HOST_NAME = frozenset(map(ord, _NAME))
_RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_RATE_MIN, _RATE_MAX = 8_000, 10**12


class Subnet(Value):
    """A range of addresses that share their first ``prefix`` bits."""

    first: bytes
    prefix: int

    def check(self) -> None:
        size = 8 * len(self.first)
        if not 0 <= self.prefix <= size or self._number & ((1 << (size - self.prefix)) - 1):
            raise ValueError(f"{format_address(self.first)}/{self.prefix} is not a subnet")

    @property
    def _number(self) -> int:
        return int.from_bytes(self.first, "big")

    @property
    def count(self) -> int:
        return 1 << (8 * len(self.first) - self.prefix)

    def at(self, offset: int) -> bytes:
        """The address that many after the first."""
        return (self._number + offset).to_bytes(len(self.first), "big")

    def contains(self, address: bytes) -> bool:
        if len(address) != len(self.first):
            return False
        return 0 <= int.from_bytes(address, "big") - self._number < self.count

    def overlaps(self, other: Subnet) -> bool:
        return self.contains(other.first) or other.contains(self.first)

    def __str__(self) -> str:
        return f"{format_address(self.first)}/{self.prefix}"


def parse_subnet(text: str) -> Subnet:
    """``10.90.0.0/22`` or ``fd00::/64``. Raises UsageError."""
    address, slash, prefix = text.partition("/")
    if not slash or not (prefix.isascii() and prefix.isdigit() and len(prefix) <= 3):
        raise UsageError(f"{text!r} is not a subnet", hint="write ADDRESS/PREFIX: 10.90.4.0/22")
    packed = _address(address, text)
    try:
        return Subnet(first=packed, prefix=int(prefix))
    except ValueError:
        raise UsageError(
            f"{text!r} is not a subnet",
            hint="its address has bits after the prefix, or the prefix is too long",
        ) from None


def _address(text: str, whole: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError:
        where = "" if text == whole else f" in {whole!r}"
        raise UsageError(
            f"{text!r}{where} is not an address", hint="write one such as 10.90.0.1 or fd00::1"
        ) from None


class Network(Value):
    """A bridge of this host and the subnets on it."""

    name: str
    bridge: str
    subnet: Subnet
    gateway: bytes
    """The bridge's own address; containers reach the host there."""
    subnet6: Subnet | None = None
    gateway6: bytes | None = None
    mtu: int = DEFAULT_MTU

    def describe(self) -> dict[str, object]:
        """The network as JSON has it; ``network_of`` reads it."""
        return {
            "name": self.name,
            "bridge": self.bridge,
            "subnet": str(self.subnet),
            "gateway": format_address(self.gateway),
            "subnet6": None if self.subnet6 is None else str(self.subnet6),
            "gateway6": None if self.gateway6 is None else format_address(self.gateway6),
            "mtu": self.mtu,
        }


def network_of(description: Mapping[str, object]) -> Network:
    """The network that ``describe`` described. Raises UsageError, KeyError or TypeError."""
    mtu = description["mtu"]
    if not isinstance(mtu, int):
        raise TypeError(mtu)
    subnet6, gateway6 = description["subnet6"], description["gateway6"]
    return Network(
        name=str(description["name"]),
        bridge=str(description["bridge"]),
        subnet=parse_subnet(str(description["subnet"])),
        gateway=parse_address(str(description["gateway"])),
        subnet6=None if subnet6 is None else parse_subnet(str(subnet6)),
        gateway6=None if gateway6 is None else parse_address(str(gateway6)),
        mtu=mtu,
    )


def plan_network(
    name: str,
    *,
    existing: Collection[Network],
    busy: Collection[Subnet] = (),
    subnet: Subnet | None = None,
    subnet6: Subnet | None = None,
    mtu: int = DEFAULT_MTU,
) -> Network:
    """A network that collides with no existing one, nor with the host's routes (``busy``).

    Without a subnet, the first free /22 of 10.90.0.0/15. Raises ConflictError.
    """
    check_network_name(name)
    if any(network.name == name for network in existing):
        raise ConflictError(f"the network {name!r} exists", hint="choose another name")
    taken = [*busy]
    for network in existing:
        taken += [network.subnet] + ([network.subnet6] if network.subnet6 else [])
    for wanted, length in ((subnet, 4), (subnet6, 16)):
        if wanted is not None:
            _check_subnet(wanted, length, taken)
    if subnet is None:
        subnet = _free_subnet(taken)
    bridges = {network.bridge for network in existing}
    return Network(
        name=name,
        bridge=next(f"ls-br{n}" for n in range(len(bridges) + 1) if f"ls-br{n}" not in bridges),
        subnet=subnet,
        gateway=subnet.at(1),
        subnet6=subnet6,
        gateway6=None if subnet6 is None else subnet6.at(1),
        mtu=mtu,
    )


def check_network_name(name: str) -> None:
    if name in ("none", "host", "container"):
        raise UsageError(f"{name!r} means something else", hint="choose another name")
    if not name or name[0] not in _NAME_FIRST or not _NAME.issuperset(name) or len(name) > 64:
        raise UsageError(
            f"{name!r} is not a name for a network",
            hint="use letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )


def _check_subnet(wanted: Subnet, length: int, taken: Iterable[Subnet]) -> None:
    if len(wanted.first) != length or wanted.prefix > 8 * length - 3 or wanted.prefix < 8:
        raise UsageError(
            f"{wanted} can't be a network's subnet",
            hint="use an IPv4 prefix of 8 to 29, or an IPv6 prefix of 8 to 125",
        )
    for other in taken:
        if other.overlaps(wanted):
            raise ConflictError(
                f"the subnet {wanted} overlaps {other}, which this host uses",
                hint="choose another one, or none to have a free one chosen",
            )


def _free_subnet(taken: Collection[Subnet]) -> Subnet:
    pool = Subnet(first=_POOL[0], prefix=_POOL[1])
    step = 1 << (32 - _POOL_PREFIX)
    for offset in range(0, pool.count, step):
        subnet = Subnet(first=pool.at(offset), prefix=_POOL_PREFIX)
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise HostError(
        f"no subnet of {pool} is free", hint="remove a network, or choose a subnet: --subnet"
    )


def free_addresses(subnet: Subnet, *, gateway: bytes, taken: Collection[bytes]) -> Iterator[bytes]:
    """Addresses that a container may have, in order: not the network's, broadcast, or taken."""
    last = subnet.count - 1 if len(subnet.first) == 4 else min(subnet.count, 1 << 16)
    for offset in range(1, last):
        address = subnet.at(offset)
        if address != gateway and address not in taken:
            yield address


def check_wanted_address(address: bytes, network: Network) -> None:
    """Raises UsageError unless a container of the network may have it."""
    subnet = network.subnet
    if not subnet.contains(address) or address in (
        subnet.first, subnet.at(subnet.count - 1), network.gateway,
    ):  # fmt: skip
        raise UsageError(
            f"{format_address(address)} is not an address for a container of {network.name!r}",
            hint=f"choose one of {subnet}, but for its first, its last and the gateway's",
        )


def mac_of(address: bytes) -> bytes:
    """The one MAC of an IPv4 address: whoever has it next, neighbours' caches stay true."""
    return _MAC_PREFIX + address


class Publication(Value):
    """A port of a container that is to be reached at a port of the host."""

    protocol: str
    host_address: bytes | None
    """None: every address of the host."""
    host_port: int
    """0: any that is free."""
    port: int


class Attachment(Value):
    """One container's place in one network."""

    container_id: str
    network: Network
    address: bytes
    address6: bytes | None = None
    link: str
    """The host's end of the pair; a port of the bridge."""
    interface: str = "eth0"
    """The container's end."""
    is_default: bool = True
    """Whether what is not near goes through this network."""
    publications: tuple[Publication, ...] = ()
    rate: int | None = None
    """Bits per second, each way."""


def plan_attachment(
    container_id: str,
    network: Network,
    address: bytes,
    *,
    number: int = 0,
    publications: Sequence[Publication] = (),
    rate: int | None = None,
) -> Attachment:
    """The container's ``number``-th network; the first one has its ports and its way out.

    The IPv6 address follows from the IPv4 one, so that one lease covers both.
    """
    check_publications(publications, has_ipv6=network.subnet6 is not None)
    address6 = None
    if network.subnet6 is not None:
        offset = int.from_bytes(address, "big") - int.from_bytes(network.subnet.first, "big")
        if offset >= network.subnet6.count:
            raise HostError(
                f"{network.subnet6} has no address that goes with {format_address(address)}",
                hint="create the network with a larger IPv6 subnet",
            )
        address6 = network.subnet6.at(offset)
    return Attachment(
        container_id=container_id,
        network=network,
        address=address,
        address6=address6,
        link=f"ls{container_id[:10]}{number}",
        interface=f"eth{number}",
        is_default=number == 0,
        publications=tuple(publications),
        rate=rate,
    )


def check_publications(publications: Sequence[Publication], *, has_ipv6: bool) -> None:
    """Raises UsageError if two of them want the same port of the host, or one can't be had."""
    seen: dict[tuple[str, int], list[bytes | None]] = {}
    for one in publications:
        if one.host_address is not None and len(one.host_address) == 16:
            _check_address6(one.host_address, has_ipv6)
        hosts = seen.setdefault((one.protocol, one.host_port), [])
        if one.host_port and any(
            host == one.host_address or None in (host, one.host_address) for host in hosts
        ):
            raise UsageError(
                f"the host's port {one.host_port}/{one.protocol} is published twice",
                hint="give each its own port, or its own address",
            )
        hosts.append(one.host_address)


def _check_address6(address: bytes, has_ipv6: bool) -> None:
    if not has_ipv6:
        raise UsageError(
            f"a port of {format_address(address)} leads to no network that has IPv6",
            hint="create one: layerstore network create --subnet6",
        )
    if address == _LOOPBACK6:
        raise UsageError(
            "the kernel passes on nothing that is for ::1",
            hint="publish the port on 127.0.0.1, or on every address",
        )


def parse_publish(text: str) -> tuple[Publication, ...]:
    """docker's ``-p``: ``[[ADDRESS:]HOST:]PORT[/PROTOCOL]``; HOST and PORT may be ranges ``A-B``.

    Without HOST any free port. An IPv6 address is in brackets. Raises UsageError.
    """
    mapping, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise UsageError(f"{protocol!r} in {text!r} is not a protocol", hint="use tcp, udp or sctp")
    address, host, port = _split_mapping(mapping, text)
    ports = _range(port, text)
    host_ports: Sequence[int] = (0,) * len(ports)
    if host:
        host_ports = _range(host, text)
        if len(host_ports) != len(ports):
            raise UsageError(
                f"the ranges in {text!r} have {len(host_ports)} and {len(ports)} ports",
                hint="make them as long as each other",
            )
    host_address = _address(address, text) if address else None
    if host_address == bytes(4):
        host_address = None
    if host_address == bytes(16):
        raise UsageError(
            f"{text!r} asks for every IPv6 address",
            hint="leave the address out: in a network with IPv6 the port is published on both",
        )
    return tuple(
        Publication(protocol=protocol, host_address=host_address, host_port=host_port, port=port)
        for host_port, port in zip(host_ports, ports, strict=True)
    )


def _split_mapping(mapping: str, text: str) -> tuple[str, str, str]:
    """(address, host, port), of which the first two may be empty."""
    if mapping.startswith("["):
        address, bracket, rest = mapping[1:].partition("]:")
        parts = [address, *rest.split(":")]
        if not bracket or len(parts) != 3 or ":" not in address:
            parts = []
    else:
        parts = mapping.split(":")
    if not 1 <= len(parts) <= 3 or (len(parts) == 3 and not parts[0]):
        raise UsageError(
            f"{text!r} is not a port to publish",
            hint="write HOST:CONTAINER, ADDRESS:HOST:CONTAINER or CONTAINER: 8080:80",
        )
    padded = ["", "", *parts][-3:]
    return padded[0], padded[1], padded[2]


def _range(text: str, whole: str) -> range:
    first, dash, last = text.partition("-")
    start = _port(first, whole)
    end = _port(last, whole) if dash else start
    if end < start:
        raise UsageError(f"the range {text!r} in {whole!r} ends before it begins")
    return range(start, end + 1)


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= _PORT_MAX):
        raise UsageError(
            f"{text!r} in {whole!r} is not a port", hint=f"use a number from 1 to {_PORT_MAX}"
        )
    return int(text)


def parse_rate(text: str) -> int:
    """Bits per second of ``100mbit``, ``1.5gbit`` or ``512kbit``, as tc's."""
    stem = text.strip().lower()
    number = stem.rstrip("bgikmt")
    whole, dot, fraction = number.partition(".")
    digits = whole + fraction
    if (
        stem[len(number) :] not in _RATES
        or not (digits.isascii() and digits.isdigit() and whole)
        or (dot and not fraction)
    ):
        raise UsageError(f"{text!r} is not a rate", hint="write one such as 100mbit or 512kbit")
    rate = int(float(number) * _RATES[stem[len(number) :]])
    if not _RATE_MIN <= rate <= _RATE_MAX:
        raise UsageError(f"the rate {text!r} is out of range", hint="use 8kbit to 1000gbit")
    return rate


class Host(Value):
    """A line of a hosts file."""

    address: bytes
    names: tuple[bytes, ...]

    def check(self) -> None:
        for name in self.names:
            if not 0 < len(name) <= 255 or not _HOST_NAME.issuperset(name):
                raise UsageError(
                    f"{os.fsdecode(name)!r} is not a host name",
                    hint="use letters, digits, '.', '_' and '-'",
                )


def parse_add_host(text: str, *, gateway: bytes | None) -> Host:
    """``--add-host NAME:ADDRESS``; the address ``host-gateway`` is this host's, ``gateway``."""
    name, colon, address = text.partition(":")
    if not colon or not name:
        raise UsageError(f"{text!r} is not a host", hint="write NAME:ADDRESS")
    if address == "host-gateway":
        if gateway is None:
            raise UsageError(
                f"{text!r} has no meaning without a network", hint="use a network, or an address"
            )
        packed = gateway
    else:
        packed = _address(address.removeprefix("[").removesuffix("]"), text)
    return Host(address=packed, names=(os.fsencode(name),))


_LOCALHOST = b"""\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
"""


def emit_hosts(hosts: Iterable[Host]) -> bytes:
    """The file: localhost, then each as given; the first line that has a name decides."""
    lines = [
        b"%s\t%s\n" % (format_address(host.address).encode(), b" ".join(host.names))
        for host in hosts
        if host.names
    ]
    return _LOCALHOST + b"".join(lines)


def hosts_of(
    attachments: Iterable[Attachment], names: Mapping[str, Sequence[bytes]]
) -> tuple[Host, ...]:
    """What the containers of these attachments are called: ``names`` by container id."""
    found = []
    for attachment in attachments:
        mine = tuple(names.get(attachment.container_id, ()))
        for address in (attachment.address, attachment.address6):
            if address is not None and mine:
                found.append(Host(address=address, names=mine))
    return tuple(found)
