"""The rules of the table ``inet layerstore``, as nftables expressions; ``nft`` draws them.

An expression works on registers: 1 to 4 hold 16 bytes each, 8 to 23 are the same memory by 4 bytes.
A value of several fields takes whole registers of 4 bytes for each. Numbers of expressions and
their attributes are from ``linux/netfilter/nf_tables.h``; types of sets are the ``nft`` program's
own, for which the kernel only keeps them.
"""

from __future__ import annotations

import struct

from layerstore.kernel.netlink import CREATE, EXCL, IPV4, IPV6, attribute, nested, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.kernel.netlink import Request

TABLE = "layerstore"

_INET = 1
_NEWTABLE, _NEWCHAIN, _NEWRULE, _NEWSET = 0, 3, 6, 9
_PREROUTING, _FORWARD, _OUTPUT, _POSTROUTING = 0, 2, 3, 4
_SET_INTERVAL, _SET_MAP = 0x4, 0x8
_IPV4_ADDR, _IPV6_ADDR, _INET_PROTO, _INET_SERVICE, _IFNAME = 7, 8, 12, 13, 41
_TYPE_BITS = 6

_VERDICT, _R1, _R2 = 0, 1, 2
_R32 = 8
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 6, 7, 15, 16
_EQUAL, _NOT_EQUAL = 0, 1
_CT_STATE, _CT_STATUS = 0, 2
_ESTABLISHED_OR_RELATED, _DNAT_STATUS = 0x2 | 0x4, 0x20
_FIB_ADDRTYPE, _FIB_DADDR, _LOCAL = 3, 2, 2
_DNAT = 1
_HOST_ORDER = struct.pack("=BBI", 0, 4, 1)
"""For the ``nft`` program alone, which otherwise reads names backwards."""
_DROP, _ACCEPT, _JUMP = 0, 1, -3


def message(*attributes: bytes) -> bytes:
    """The body of a message about our family of tables."""
    return struct.pack("=BBH", _INET, 0, 0) + b"".join(attributes)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!i" if value < 0 else "!I", value))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))


def _meta(key: int, register: int) -> bytes:
    return _expression("meta", _number(1, register), _number(2, key))


def _payload(header: int, offset: int, length: int, register: int) -> bytes:
    return _expression(
        "payload", _number(1, register), _number(2, header), _number(3, offset), _number(4, length)
    )


def _compare(operator: int, value: bytes, register: int = _R1) -> bytes:
    return _expression(
        "cmp", _number(1, register), _number(2, operator), nested(3, attribute(1, value))
    )


def _masked(mask: bytes) -> bytes:
    """Register 1 keeps the bits of the mask."""
    return _expression(
        "bitwise",
        _number(1, _R1),
        _number(2, _R1),
        _number(3, len(mask)),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, bytes(len(mask)))),
    )


def _conntrack(key: int, bits: int) -> bytes:
    """Any of the bits is set in the connection's state or status."""
    return (
        _expression("ct", _number(1, _R1), _number(2, key))
        + _masked(struct.pack("=I", bits))
        + _compare(_NOT_EQUAL, bytes(4))
    )


def _lookup(
    set_name: str, register: int = _R1, *, target: int | None = None, is_in: bool = True
) -> bytes:
    attributes = [text(1, set_name), _number(2, register)]
    if target is not None:
        attributes.append(_number(3, target))
    return _expression("lookup", *attributes, _number(5, 0 if is_in else 1))


def _verdict(code: int, chain: str | None = None) -> bytes:
    parts = [_number(1, code)] + ([] if chain is None else [text(2, chain)])
    return _expression("immediate", _number(1, _VERDICT), nested(2, nested(2, *parts)))


class _Family:
    """What differs between the versions of IP."""

    def __init__(self, number: int) -> None:
        is_4 = number == IPV4
        self.number = number
        self.digit = "4" if is_4 else "6"
        self.address_type = _IPV4_ADDR if is_4 else _IPV6_ADDR
        self.size = 4 if is_4 else 16
        self._source, self._destination = (12, 16) if is_4 else (8, 24)

    def only(self) -> bytes:
        return _meta(_META_NFPROTO, _R1) + _compare(_EQUAL, bytes([self.number]))

    def source(self) -> bytes:
        return self.only() + _payload(_NETWORK_HEADER, self._source, self.size, _R1)

    def destination(self, register: int = _R1) -> bytes:
        return self.only() + _payload(_NETWORK_HEADER, self._destination, self.size, register)

    def dnat(self, *, on_address: bool) -> bytes:
        """To what the map says of the packet's protocol and port, and its address too."""
        name, at, match = f"ports{self.digit}", _R32, self.only()
        if on_address:
            name += "_on"
            match = self.destination(at)
            at += self.size // 4
        port_register = _R32 + self.size // 4
        return (
            match
            + _meta(_META_L4PROTO, at)
            + _payload(_TRANSPORT_HEADER, 2, 2, at + 1)
            + _lookup(name, target=_R1)
            + _expression(
                "nat",
                _number(1, _DNAT),
                _number(2, self.number),
                _number(3, _R1),
                _number(5, port_register),
            )
        )


_IP4, _IP6 = _Family(IPV4), _Family(IPV6)
_MASQUERADE = _expression("masq")
_LOOPBACK_NET = _masked(b"\xff\0\0\0") + _compare(_EQUAL, b"\x7f\0\0\0")
_FROM_BRIDGE = _meta(_META_IIFNAME, _R1) + _lookup("bridges")
_TO_BRIDGE = _meta(_META_OIFNAME, _R1) + _lookup("bridges")
_NOT_TO_BRIDGE = _meta(_META_OIFNAME, _R1) + _lookup("bridges", is_in=False)
_TO_LOCAL_ADDRESS = _expression(
    "fib", _number(1, _R1), _number(2, _FIB_ADDRTYPE), _number(3, _FIB_DADDR)
) + _compare(_EQUAL, struct.pack("=I", _LOCAL))
_TO_PUBLISHED = _TO_LOCAL_ADDRESS + _verdict(_JUMP, "published")


def _set(
    name: str, key: tuple[int, int], *, flags: int = 0, data: tuple[int, int] | None = None
) -> Request:
    """``key`` and ``data`` are (type, length)."""
    attributes = [
        text(1, TABLE),
        text(2, name),
        _number(3, flags | (_SET_MAP if data else 0)),
        _number(4, key[0]),
        _number(5, key[1]),
    ]
    if data:
        attributes += [_number(6, data[0]), _number(7, data[1])]
    if key[0] == _IFNAME:
        attributes.append(attribute(13, _HOST_ORDER))
    # Sets of one batch are told apart by their ids; a named one is found by name all the same.
    return f"add set {name}", _NEWSET, CREATE | EXCL, message(*attributes, _number(10, 1))


def _tuple_type(*types: int) -> int:
    combined = 0
    for one in types:
        combined = combined << _TYPE_BITS | one
    return combined


def _chain(name: str, hook: tuple[str, int, int] | None = None) -> Request:
    """``hook`` is (type, hook, priority)."""
    attributes = [text(1, TABLE), text(3, name)]
    if hook is not None:
        kind, number, priority = hook
        attributes += [nested(4, _number(1, number), _number(2, priority)), text(7, kind)]
    return f"add chain {name}", _NEWCHAIN, CREATE | EXCL, message(*attributes)


def _rule(chain: str, *expressions: bytes) -> Request:
    body = message(text(1, TABLE), text(2, chain), nested(4, *expressions))
    return f"add rule to {chain}", _NEWRULE, CREATE | 0x800, body


def base_requests() -> list[Request]:
    """The table, with everything but elements; fails with EEXIST if it is there already."""
    return [
        (f"add table {TABLE}", _NEWTABLE, CREATE | EXCL, message(text(1, TABLE))),
        _set("bridges", (_IFNAME, 16)),
        _set("same", (_tuple_type(_IFNAME, _IFNAME), 32)),
        *_sets_of(_IP4),
        *_sets_of(_IP6),
        _chain("loopback", ("filter", _PREROUTING, -300)),
        _chain("published"),
        _chain("prerouting", ("nat", _PREROUTING, -100)),
        _chain("output", ("nat", _OUTPUT, -100)),
        _chain("postrouting", ("nat", _POSTROUTING, 100)),
        _chain("forward", ("filter", _FORWARD, 0)),
        _rule("loopback", _FROM_BRIDGE, _IP4.destination(), _LOOPBACK_NET, _verdict(_DROP)),
        _rule("loopback", _FROM_BRIDGE, _IP4.source(), _LOOPBACK_NET, _verdict(_DROP)),
        *(_rule("published", family.dnat(on_address=on_address))
          for family in (_IP4, _IP6) for on_address in (True, False)),
        _rule("prerouting", _TO_PUBLISHED),
        _rule("output", _TO_PUBLISHED),
        _rule("postrouting", _IP4.source(), _LOOPBACK_NET, _TO_BRIDGE, _MASQUERADE),
        *_masquerade_of(_IP4),
        *_masquerade_of(_IP6),
        _rule("forward", _meta(_META_IIFNAME, _R1), _meta(_META_OIFNAME, _R2), _lookup("same"),
              _verdict(_ACCEPT)),
        _rule("forward", _TO_BRIDGE, _conntrack(_CT_STATE, _ESTABLISHED_OR_RELATED),
              _verdict(_ACCEPT)),
        _rule("forward", _TO_BRIDGE, _conntrack(_CT_STATUS, _DNAT_STATUS), _verdict(_ACCEPT)),
        _rule("forward", _TO_BRIDGE, _verdict(_DROP)),
    ]  # fmt: skip


def _sets_of(family: _Family) -> list[Request]:
    address, size, digit = family.address_type, family.size, family.digit
    service = (_INET_PROTO, _INET_SERVICE)
    target = (_tuple_type(address, _INET_SERVICE), size + 4)
    return [
        _set(f"subnets{digit}", (address, size), flags=_SET_INTERVAL),
        _set(f"ports{digit}", (_tuple_type(*service), 8), data=target),
        _set(f"ports{digit}_on", (_tuple_type(address, *service), size + 8), data=target),
    ]


def _masquerade_of(family: _Family) -> list[Request]:
    from_network = family.source() + _lookup(f"subnets{family.digit}")
    return [
        _rule("postrouting", from_network, _NOT_TO_BRIDGE, _MASQUERADE),
        # Without it the answer would go straight back over the bridge, from another address than
        # the one that was asked.
        _rule("postrouting", from_network, _conntrack(_CT_STATUS, _DNAT_STATUS), _MASQUERADE),
    ]


def guard_requests() -> list[Request]:
    """Of IPv4, only what comes from a bridge or goes to one is forwarded."""
    return [
        _chain("guard", ("filter", _FORWARD, 1)),
        _rule("guard", _FROM_BRIDGE, _verdict(_ACCEPT)),
        _rule("guard", _TO_BRIDGE, _verdict(_ACCEPT)),
        _rule("guard", _IP4.only(), _verdict(_DROP)),
    ]
