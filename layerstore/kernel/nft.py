"""The nftables messages that put networks and published ports into one table of our own.

``nft list table inet layerstore`` shows what is there. The rules never change: networks and ports
are elements of sets and maps, so that adding one costs a fraction of a millisecond. Messages are
netlink's, their numbers in network byte order, in a batch that takes effect whole or not at all.

::

    set   bridges      ifname                                   each network's bridge
    set   same         ifname . ifname                          each bridge with itself
    set   subnets4     ipv4_addr, intervals                     each network's addresses
    map   ports4       proto . port : ip . port                 published on every address
    map   ports4_on    ip . proto . port : ip . port            published on one
    chain loopback     prerouting, raw   127/8 from a bridge: drop (CVE-2020-8558)
    chain prerouting   nat               to a local address: published
    chain output       nat               to a local address: published
    chain published                      dnat by ports4_on, else by ports4
    chain postrouting  nat               masquerade what leaves a network, what comes from 127/8,
                                         and what a network sends to itself through a published port
    chain forward      filter            into a network: from itself, answers, published; else drop
    chain guard        filter            only where we turned forwarding on: nothing but networks

and the same sets and maps with a 6. A firewall's other tables still have their say.
"""

from __future__ import annotations

import errno
import os
import struct

from layerstore.errors import ConflictError, HostError
from layerstore.kernel.addresses import format_address
from layerstore.kernel.netlink import (
    ACK,
    CREATE,
    NETFILTER,
    REQUEST,
    Netlink,
    attribute,
    nested,
    parse_attributes,
    text,
)
from layerstore.kernel.nft_rules import TABLE, base_requests, guard_requests, message
from layerstore.kernel.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerstore.kernel.netlink import Request

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}

_GETTABLE, _DELTABLE, _GETCHAIN = 1, 2, 4
_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_BATCH_BEGIN, _BATCH_END = 16, 17
_SUBSYSTEM = 10
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME = 1, 1, 3
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS = 1, 2, 3
_LIST_ELEMENT, _DATA_VALUE = 1, 1
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_FLAGS, _INTERVAL_END = 1, 2, 3, b"\0\0\0\1"
_CHUNK = 256  # the list of elements is an attribute, whose length has 16 bits
_HINT = "load the kernel's nf_tables and nft_nat modules, or use --network none or host"


class Segment(Value):
    """A network as the rules see it."""

    bridge: str
    subnets: tuple[tuple[bytes, int], ...]
    """(first address, prefix length): one of IPv4, and one of IPv6 if it has any."""


class Port(Value):
    """A published port: who connects to the host's is connected to the container's."""

    protocol: str
    host_address: bytes | None
    """None is every IPv4 address of the host, or every IPv6 one: as ``address`` is."""
    host_port: int
    address: bytes
    port: int

    def __str__(self) -> str:
        host = "*" if self.host_address is None else format_address(self.host_address)
        return f"{self.protocol} {host} {self.host_port}"


class Nftables(Netlink):
    """The table, in the caller's network namespace."""

    def __init__(self) -> None:
        super().__init__(NETFILTER)

    def put(self, segments: Iterable[Segment], ports: Iterable[Port]) -> None:
        """The networks are connected and isolated, the ports published; the table is there.

        Repeating it changes nothing. Raises ConflictError, having done nothing, for a port that is
        published for somebody else.
        """
        ports = tuple(ports)
        requests = _segment_requests(_NEWSETELEM, segments) + _port_requests(_NEWSETELEM, ports)
        for _ in range(2):
            try:
                return self._commit(requests)
            except OSError as error:
                if error.errno == errno.EEXIST:
                    raise self._conflict(ports) or error from error
                if error.errno != errno.ENOENT:
                    raise
            self._install()
        raise HostError(
            "the nft table inet layerstore is not one of this version",
            hint="stop the containers that have a network, and: nft delete table inet layerstore",
        )

    def withdraw_ports(self, ports: Iterable[Port]) -> None:
        """They are not published; somebody else's on the same host port are left alone."""
        mine = [port for port in ports if self.target(port) == (port.address, port.port)]
        self._delete(_port_requests(_DELSETELEM, mine))

    def withdraw_segment(self, segment: Segment) -> None:
        """The rules no longer know the network."""
        # One transaction each: what a flushed or half-made table lacks does not keep the rest.
        for request in _segment_requests(_DELSETELEM, (segment,)):
            self._delete([request])

    def target(self, port: Port) -> tuple[bytes, int] | None:
        """The container's address and port to which the host's port leads now, if any."""
        name, key, _ = _port_element(port)
        body = _elements_body(name, [nested(_LIST_ELEMENT, _value(_ELEMENT_KEY, key))])
        try:
            answer = self.ask(f"get port {port}", _SUBSYSTEM << 8 | _GETSETELEM, body)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        outer = parse_attributes(answer[4:])
        element = parse_attributes(parse_attributes(outer[_ELEMENTS])[_LIST_ELEMENT])
        value = parse_attributes(element[_ELEMENT_DATA])[_DATA_VALUE]
        size = len(port.address)
        return value[:size], int.from_bytes(value[size : size + 2], "big")

    def guard(self) -> None:
        """Forwarding is for networks alone, as if we had not turned it on."""
        try:
            self._commit(guard_requests())
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise

    def has_table(self) -> bool:
        return self._has(_GETTABLE, "table", text(_TABLE_NAME, TABLE))

    def has_guard(self) -> bool:
        return self._has(_GETCHAIN, "guard", text(_CHAIN_TABLE, TABLE) + text(_CHAIN_NAME, "guard"))

    def has_segments(self) -> bool:
        """Whether the rules know a network."""
        body = message(text(_ELEMENTS_TABLE, TABLE), text(_ELEMENTS_SET, "bridges"))
        try:
            answers = self.dump("list bridges", _SUBSYSTEM << 8 | _GETSETELEM, body)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return any(parse_attributes(answer[4:]).get(_ELEMENTS) for answer in answers)

    def _has(self, kind: int, what: str, attributes: bytes) -> bool:
        try:
            self.ask(f"get {what}", _SUBSYSTEM << 8 | kind, message(attributes))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def install(self) -> None:
        """The table with its rules is there."""
        if not self.has_table():
            self._install()

    def remove_table(self) -> None:
        """Nothing of ours is left in the packet filter."""
        self._delete([("delete table " + TABLE, _DELTABLE, 0, message(text(_TABLE_NAME, TABLE)))])

    def _install(self) -> None:
        try:
            self._commit(base_requests())
        except OSError as error:
            if error.errno == errno.EEXIST:  # somebody else was faster
                return
            raise HostError(
                f"the kernel refused packet filter rules: {error}", hint=_HINT
            ) from error

    def _conflict(self, ports: tuple[Port, ...]) -> ConflictError | None:
        for port in ports:
            if self.target(port) not in (None, (port.address, port.port)):
                return ConflictError(
                    f"the port {port.host_port}/{port.protocol} is published already",
                    hint="choose another one, or stop the container that has it",
                )
        return None

    def _delete(self, requests: list[Request]) -> None:
        try:
            self._commit(requests)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _commit(self, requests: Sequence[Request]) -> None:
        if not requests:
            return
        batch = struct.pack("=BB", 0, 0) + struct.pack("!H", _SUBSYSTEM)
        self.exchange(
            [
                ("begin", _BATCH_BEGIN, REQUEST, batch),
                *(
                    (what, _SUBSYSTEM << 8 | kind, REQUEST | ACK | flags, body)
                    for what, kind, flags, body in requests
                ),
                ("commit", _BATCH_END, REQUEST, batch),
            ]
        )


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(_DATA_VALUE, value))


def _elements_body(set_name: str, elements: Iterable[bytes]) -> bytes:
    return message(
        text(_ELEMENTS_TABLE, TABLE), text(_ELEMENTS_SET, set_name), nested(_ELEMENTS, *elements)
    )


def _element_requests(kind: int, set_name: str, elements: list[bytes]) -> list[Request]:
    verb = "delete" if kind == _DELSETELEM else "add"
    flags = CREATE if kind == _NEWSETELEM else 0
    return [
        (
            f"{verb} elements of {set_name}",
            kind,
            flags,
            _elements_body(set_name, elements[at : at + _CHUNK]),
        )
        for at in range(0, len(elements), _CHUNK)
    ]


def _segment_requests(kind: int, segments: Iterable[Segment]) -> list[Request]:
    requests = []
    for segment in segments:
        name = os.fsencode(segment.bridge).ljust(16, b"\0")
        sets = [("bridges", [name]), ("same", [name + name])]
        for set_name, keys in sets:
            elements = [nested(_LIST_ELEMENT, _value(_ELEMENT_KEY, key)) for key in keys]
            requests += _element_requests(kind, set_name, elements)
        for first, prefix in segment.subnets:
            set_name = "subnets4" if len(first) == 4 else "subnets6"
            requests += _element_requests(kind, set_name, _interval(first, prefix))
    return requests


def _interval(first: bytes, prefix: int) -> list[bytes]:
    """The first address in, and the first one out."""
    size = len(first)
    end = int.from_bytes(first, "big") + (1 << (8 * size - prefix))
    return [
        nested(_LIST_ELEMENT, _value(_ELEMENT_KEY, first)),
        nested(
            _LIST_ELEMENT,
            attribute(_ELEMENT_FLAGS, _INTERVAL_END),
            _value(_ELEMENT_KEY, end.to_bytes(size, "big")),
        ),
    ]


def _port_element(port: Port) -> tuple[str, bytes, bytes]:
    """(map, key, value); every field of a key or value fills whole registers of 4 bytes."""
    key = struct.pack("!B3xH2x", PROTOCOLS[port.protocol], port.host_port)
    value = port.address + struct.pack("!H2x", port.port)
    name = "ports4" if len(port.address) == 4 else "ports6"
    if port.host_address is None:
        return name, key, value
    return name + "_on", port.host_address + key, value


def _port_requests(kind: int, ports: Iterable[Port]) -> list[Request]:
    of_map: dict[str, list[bytes]] = {}
    for port in ports:
        name, key, value = _port_element(port)
        element = _value(_ELEMENT_KEY, key)
        if kind == _NEWSETELEM:
            element += _value(_ELEMENT_DATA, value)
        of_map.setdefault(name, []).append(nested(_LIST_ELEMENT, element))
    return [
        request
        for name, elements in of_map.items()
        for request in _element_requests(kind, name, elements)
    ]
