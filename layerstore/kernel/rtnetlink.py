"""The interfaces, addresses, routes and rate limits of a network namespace (rtnetlink).

The numbers are those of ``linux/if_link.h``, ``if_addr.h``, ``rtnetlink.h`` and ``pkt_sched.h``.
"""

from __future__ import annotations

import errno
import os
import struct

from layerstore.kernel.netlink import (
    CREATE,
    EXCL,
    IPV4,
    IPV6,
    REPLACE,
    ROUTE,
    Netlink,
    attribute,
    nested,
    parse_attributes,
    text,
    word,
)
from layerstore.kernel.values import Value

_IFF_UP = 0x1


class Link(Value):
    """A network interface."""

    index: int
    name: str
    kind: str
    """``bridge``, ``veth`` and so on; empty for hardware and loopback."""
    is_up: bool
    """Set up by somebody; it may still want a carrier."""
    is_operational: bool
    """What it is told to send is sent."""
    mtu: int
    mac: bytes
    master: int | None
    """The index of the bridge that it is a port of."""


class Address(Value):
    """An address of an interface."""

    index: int
    address: bytes
    prefix: int


class Route(Value):
    """A unicast route of the main table; the default route's destination is all zeros / 0."""

    destination: bytes
    prefix: int
    gateway: bytes | None
    index: int | None


_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWQDISC, _DELQDISC = 36, 37
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_OPERSTATE, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 16, 26, 28
_OPERSTATE_UP = b"\6"
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_INFO_SLAVE_KIND, _INFO_SLAVE_DATA, _BRPORT_MODE = 4, 5, 4
_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, b"\1"
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS, _IFA_F_NODAD = 1, 2, 4, 8, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 1, 4, 5, 15
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _SCOPE_LINK, _UNICAST = 254, 4, 0, 253, 1
_TCA_KIND, _TCA_OPTIONS, _TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 2, 1, 4, 6
_TC_ROOT, _TC_HANDLE = 0xFFFFFFFF, 1 << 16
_LINKLAYER_ETHERNET = 1
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_TCMSG = struct.Struct("=BxxxiIII")
_RATESPEC = struct.Struct("=BBHhHI")
_LATENCY_S = 0.05
_BURST_MIN = 1 << 16  # one segmentation-offload packet


def _family(packed: bytes) -> int:
    return IPV4 if len(packed) == 4 else IPV6


def _ifinfo(*, index: int = 0, up: bool | None = None) -> bytes:
    return _IFINFO.pack(0, 0, index, _IFF_UP if up else 0, 0 if up is None else _IFF_UP)


def check_link_name(name: str) -> None:
    """Raises ValueError for what the kernel would refuse, or read as a pattern."""
    packed = os.fsencode(name)
    if not 0 < len(packed) < 16 or name in (".", "..") or set(packed) & set(b"/:% \t\n\r\v\f\0"):
        raise ValueError(f"{name!r} is not a name of an interface")


class Rtnetlink(Netlink):
    """The interfaces, addresses, routes and queues of a network namespace."""

    def __init__(self, *, netns_fd: int | None = None) -> None:
        super().__init__(ROUTE, netns_fd=netns_fd)

    # ---- links

    def links(self) -> list[Link]:
        return [_link(body) for body in self.dump("list links", _GETLINK, _ifinfo())]

    def link(self, name: str) -> Link:
        """Raises OSError ENODEV if there is none."""
        check_link_name(name)
        return _link(self.ask(f"get link {name}", _GETLINK, _ifinfo() + text(_IFLA_IFNAME, name)))

    def try_link(self, name: str) -> Link | None:
        try:
            return self.link(name)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None

    def add_bridge(self, name: str, *, mac: bytes, mtu: int) -> None:
        """A bridge, down. With a MAC of its own it does not take one of its ports'."""
        body = _ifinfo() + _common(name, mac, mtu) + nested(
            _IFLA_LINKINFO, text(_INFO_KIND, "bridge")
        )  # fmt: skip
        self.call(f"add bridge {name}", _NEWLINK, CREATE | EXCL, body)

    def add_veth(
        self,
        name: str,
        *,
        master: int | None = None,
        mtu: int,
        peer: str,
        peer_mac: bytes,
        peer_netns_fd: int,
    ) -> None:
        """A pair, both down: ``name`` here, a port of ``master``; ``peer`` in the other namespace.

        The peer cannot come up with its creation: ENOTCONN, as it has no other end yet.
        """
        other = _ifinfo() + _common(peer, peer_mac, mtu) + word(_IFLA_NET_NS_FD, peer_netns_fd)
        body = _ifinfo() + _common(name, None, mtu)
        if master is not None:
            body += word(_IFLA_MASTER, master)
        body += nested(
            _IFLA_LINKINFO,
            text(_INFO_KIND, "veth"),
            nested(_INFO_DATA, attribute(_VETH_PEER, other)),
        )
        self.call(f"add veth {name} peer {peer}", _NEWLINK, CREATE | EXCL, body)

    def set_link(
        self,
        index: int,
        *,
        up: bool | None = None,
        name: str | None = None,
        mac: bytes | None = None,
        mtu: int | None = None,
        master: int | None = None,
        netns_fd: int | None = None,
        link_local: bool = True,
    ) -> None:
        """What is given holds. ``master`` 0 takes a port off its bridge.

        Without ``link_local`` the interface makes up no IPv6 address when it comes up.
        """
        shown = {
            "up": up, "name": name, "mac": mac and mac.hex(":"), "mtu": mtu, "master": master,
            "netns": netns_fd,
        }  # fmt: skip
        what = "".join(f" {key} {value}" for key, value in shown.items() if value is not None)
        body = _ifinfo(index=index, up=up) + _common(name, mac, mtu)
        if master is not None:
            body += word(_IFLA_MASTER, master)
        if netns_fd is not None:
            body += word(_IFLA_NET_NS_FD, netns_fd)
        if not link_local:
            mode = attribute(_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE)
            body += nested(_IFLA_AF_SPEC, nested(IPV6, mode))
        self.call(f"set link {index}{what}", _SETLINK, 0, body)

    def set_hairpin(self, index: int) -> None:
        """A port's bridge sends it back what it sent, if it is for the port."""
        data = nested(_INFO_SLAVE_DATA, attribute(_BRPORT_MODE, b"\1"))
        info = nested(_IFLA_LINKINFO, text(_INFO_SLAVE_KIND, "bridge"), data)
        # RTM_SETLINK has no ear for a port's attributes.
        self.call(f"set hairpin of link {index}", _NEWLINK, 0, _ifinfo(index=index) + info)

    def delete_link(self, index: int) -> None:
        """A veth takes its peer along, a bridge none of its ports."""
        self.call(f"delete link {index}", _DELLINK, 0, _ifinfo(index=index))

    # ---- addresses

    def addresses(self, index: int = 0) -> list[Address]:
        """Those of one interface, or of all."""
        body = _IFADDR.pack(0, 0, 0, 0, index)
        return [_address(answer) for answer in self.dump("list addresses", _GETADDR, body)]

    def add_address(self, index: int, packed: bytes, prefix: int) -> None:
        """Usable at once: IPv6 does not first ask whether somebody else has the address."""
        self.call(
            f"add address {packed.hex()}/{prefix} to link {index}",
            _NEWADDR,
            CREATE | EXCL,
            _address_body(index, packed, prefix),
        )

    def delete_address(self, index: int, packed: bytes, prefix: int) -> None:
        what = f"delete address {packed.hex()}/{prefix} of link {index}"
        self.call(what, _DELADDR, 0, _address_body(index, packed, prefix))

    # ---- routes

    def routes(self, family: int = IPV4) -> list[Route]:
        """The main table's unicast routes of ``IPV4`` or ``IPV6``."""
        body = _RTMSG.pack(family, 0, 0, 0, _TABLE_MAIN, 0, 0, _UNICAST, 0)
        body += word(_RTA_TABLE, _TABLE_MAIN)
        try:
            answers = self.dump("list routes", _GETROUTE, body)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the namespace has no main table yet
                raise
            return []
        return [_route(answer) for answer in answers]

    def add_route(
        self, destination: bytes, prefix: int, *, index: int, gateway: bytes | None = None
    ) -> None:
        """Zeros / 0 is the default route. Without a gateway the destination is on the link."""
        self.call(
            f"add route {destination.hex()}/{prefix} link {index}",
            _NEWROUTE,
            CREATE | EXCL,
            _route_body(destination, prefix, index, gateway),
        )

    def delete_route(
        self, destination: bytes, prefix: int, *, index: int, gateway: bytes | None = None
    ) -> None:
        what = f"delete route {destination.hex()}/{prefix} link {index}"
        self.call(what, _DELROUTE, 0, _route_body(destination, prefix, index, gateway))

    # ---- queues

    def set_rate(self, index: int, bits_per_second: int) -> None:
        """The interface sends no faster: a token bucket that queues up to 50 ms."""
        rate = bits_per_second // 8
        burst = min(max(rate // 100, _BURST_MIN), 0xFFFFFFFF)
        limit = min(int(rate * _LATENCY_S) + burst, 0xFFFFFFFF)
        spec = _RATESPEC.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF))
        parameters = spec + bytes(_RATESPEC.size) + struct.pack("=III", limit, 0, 0)
        options = attribute(_TBF_PARMS, parameters) + word(_TBF_BURST, burst)
        if rate > 0xFFFFFFFF:
            options += attribute(_TBF_RATE64, struct.pack("=Q", rate))
        body = _TCMSG.pack(0, index, _TC_HANDLE, _TC_ROOT, 0)
        body += text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, options)
        what = f"limit link {index} to {bits_per_second} bit/s"
        self.call(what, _NEWQDISC, CREATE | REPLACE, body)

    def unset_rate(self, index: int) -> None:
        body = _TCMSG.pack(0, index, 0, _TC_ROOT, 0)
        self.call(f"unlimit link {index}", _DELQDISC, 0, body)


def _common(name: str | None, mac: bytes | None, mtu: int | None) -> bytes:
    body = b""
    if name is not None:
        check_link_name(name)
        body += text(_IFLA_IFNAME, name)
    if mac is not None:
        body += attribute(_IFLA_ADDRESS, mac)
    if mtu is not None:
        body += word(_IFLA_MTU, mtu)
    return body


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = parse_attributes(body[_IFINFO.size :])
    info = parse_attributes(found.get(_IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=os.fsdecode(found[_IFLA_IFNAME].rstrip(b"\0")),
        kind=info.get(_INFO_KIND, b"").rstrip(b"\0").decode(),
        is_up=bool(flags & _IFF_UP),
        is_operational=found.get(_IFLA_OPERSTATE) == _OPERSTATE_UP,
        mtu=_word(found.get(_IFLA_MTU)) or 0,
        mac=found.get(_IFLA_ADDRESS, b""),
        master=_word(found.get(_IFLA_MASTER)),
    )


def _word(value: bytes | None) -> int | None:
    return None if value is None else int(struct.unpack("=I", value)[0])


def _address_body(index: int, packed: bytes, prefix: int) -> bytes:
    body = _IFADDR.pack(_family(packed), prefix, 0, _SCOPE_UNIVERSE, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    if len(packed) == 16:
        return body + word(_IFA_FLAGS, _IFA_F_NODAD)
    if prefix < 31:
        last = int.from_bytes(packed, "big") | ((1 << (32 - prefix)) - 1)
        body += attribute(_IFA_BROADCAST, last.to_bytes(4, "big"))
    return body


def _address(body: bytes) -> Address:
    _, prefix, _, _, index = _IFADDR.unpack_from(body)
    found = parse_attributes(body[_IFADDR.size :])
    packed = found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]
    return Address(index=index, address=packed, prefix=prefix)


def _route_body(destination: bytes, prefix: int, index: int, gateway: bytes | None) -> bytes:
    scope = _SCOPE_LINK if gateway is None and len(destination) == 4 else _SCOPE_UNIVERSE
    body = _RTMSG.pack(
        _family(destination), prefix, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, scope, _UNICAST, 0
    )
    if prefix:
        body += attribute(_RTA_DST, destination)
    if gateway is not None:
        body += attribute(_RTA_GATEWAY, gateway)
    return body + word(_RTA_OIF, index)


def _route(body: bytes) -> Route:
    family, prefix, *_ = _RTMSG.unpack_from(body)
    found = parse_attributes(body[_RTMSG.size :])
    return Route(
        destination=found.get(_RTA_DST, bytes(4 if family == IPV4 else 16)),
        prefix=prefix,
        gateway=found.get(_RTA_GATEWAY),
        index=_word(found.get(_RTA_OIF)),
    )
