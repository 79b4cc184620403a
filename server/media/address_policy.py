"""Which addresses this server may dial when a client names a URL: those of the public internet, and no others.

The tables follow the IANA special-purpose address registries (RFC 6890 and its successors). `ipaddress.is_global` alone
is not enough: it says yes to multicast, and to NAT64, 6to4 and Teredo addresses, whose embedded IPv4 address may be
private.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_IPV4: tuple[tuple[IPv4Network, str], ...] = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by carriers (CGNAT)"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's internal service (Azure)"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
    )
)

_IPV6: tuple[tuple[IPv6Network, str], ...] = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("::ffff:0:0:0/96", "IPv4-translated"),
        ("64:ff9b::/96", "NAT64"),
        ("64:ff9b:1::/48", "NAT64"),
        ("100::/64", "discard-only"),
        ("2001::/32", "Teredo"),
        ("2001:2::/48", "benchmarking"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("3ffe::/16", "reserved"),
        ("3fff::/20", "documentation"),
        ("fc00::/7", "private (unique local)"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private (site-local)"),
        ("ff00::/8", "multicast"),
    )
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""The only IPv6 space that IANA hands out for the public internet."""

_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""Upper half of an interface identifier that embeds an IPv4 address (RFC 5214, section 6.1)."""


def refusal(address: str) -> str | None:
    """Why `address` must not be dialled, in a few words for the log; None when it is on the public internet.

    IPv4-mapped IPv6 addresses are judged as the IPv4 address that they stand for. Text that is not a plain IPv4 or IPv6
    address is refused too: a zone, a port, or the short, octal and hexadecimal spellings that some resolvers take.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return "not an IP address"
    if isinstance(parsed, IPv4Address):
        return _ipv4_refusal(parsed)
    if parsed.scope_id is not None:
        return "bound to a zone"
    return _ipv4_refusal(parsed.ipv4_mapped) if parsed.ipv4_mapped else _ipv6_refusal(parsed)


def _ipv4_refusal(address: IPv4Address) -> str | None:
    return next((reason for network, reason in _IPV4 if address in network), None) or _stdlib_refusal(address)


def _ipv6_refusal(address: IPv6Address) -> str | None:
    for network, reason in _IPV6:
        if address in network:
            return reason
    if address not in _GLOBAL_UNICAST:
        return "reserved"
    if int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
        return "ISATAP"
    return _stdlib_refusal(address)


def _stdlib_refusal(address: IPv4Address | IPv6Address) -> str | None:
    """What a newer Python knows beyond the tables."""
    return None if address.is_global and not address.is_reserved else "not public"
