"""Only addresses of the public internet may be dialled, whatever they are spelled as."""

import ipaddress

import pytest

from server.media.address_policy import refusal

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.3.1",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "203.0.112.255",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2606:2800:220:1:248:1893:25c8:1946",
    "2a00:1450:4001:81b::200e",
    "::ffff:8.8.8.8",
    "::ffff:808:808",
]

BLOCKED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.1": "private",
    "10.255.255.255": "private",
    "100.64.0.1": "shared by carriers (CGNAT)",
    "100.100.100.200": "shared by carriers (CGNAT)",
    "100.127.255.255": "shared by carriers (CGNAT)",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "168.63.129.16": "a cloud's internal service (Azure)",
    "169.254.169.254": "link-local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.8": "reserved for protocols",
    "192.0.0.192": "reserved for protocols",
    "192.0.2.1": "documentation",
    "192.88.99.1": "a 6to4 relay",
    "192.168.1.1": "private",
    "198.18.0.1": "benchmarking",
    "198.19.255.255": "benchmarking",
    "198.51.100.7": "documentation",
    "203.0.113.7": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "broadcast",
    "::": "unspecified",
    "::1": "loopback",
    "::7f00:1": "IPv4-compatible",
    "::8.8.8.8": "IPv4-compatible",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.0.0.1": "private",
    "::ffff:a9fe:a9fe": "link-local",
    "::ffff:0.0.0.0": "unspecified",
    "::ffff:224.0.0.1": "multicast",
    "::ffff:0:127.0.0.1": "IPv4-translated",
    "64:ff9b::7f00:1": "NAT64",
    "64:ff9b::8.8.8.8": "NAT64",
    "64:ff9b:1::7f00:1": "NAT64",
    "100::1": "discard-only",
    "2001::1": "Teredo",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "Teredo",
    "2001:2::1": "benchmarking",
    "2001:10::1": "reserved for protocols",
    "2001:20::1": "reserved for protocols",
    "2001:db8::1": "documentation",
    "2002:7f00:1::": "6to4",
    "2002:808:808::1": "6to4",
    "2a00:1450::5efe:7f00:1": "ISATAP",
    "2a00:1450::200:5efe:a9fe:a9fe": "ISATAP",
    "3ffe::1": "reserved",
    "3fff:fff::1": "documentation",
    "4000::1": "reserved",
    "5f00::1": "reserved",
    "fc00::1": "private (unique local)",
    "fd00:ec2::254": "private (unique local)",
    "fe80::1": "link-local",
    "fec0::1": "private (site-local)",
    "ff02::1": "multicast",
    "fe80::1%eth0": "bound to a zone",
    "2606:2800:220:1::1%2": "bound to a zone",
    "::ffff:8.8.8.8%1": "bound to a zone",
    "127.1": "not an IP address",
    "2130706433": "not an IP address",
    "0x7f000001": "not an IP address",
    "0177.0.0.1": "not an IP address",
    "8.8.8.8:80": "not an IP address",
    "[::1]": "not an IP address",
    " 8.8.8.8": "not an IP address",
    "localhost": "not an IP address",
    "": "not an IP address",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_dialled(address: str) -> None:
    assert refusal(address) is None


@pytest.mark.parametrize(("address", "reason"), BLOCKED.items())
def test_other_addresses_may_not(address: str, reason: str) -> None:
    assert refusal(address) == reason


def test_the_table_is_large_enough_and_holds_what_the_standard_library_misses() -> None:
    assert len(BLOCKED) >= 40
    for address in ("64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1"):
        assert ipaddress.ip_address(address).is_global
        assert refusal(address)


@pytest.mark.parametrize(
    "network", ["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "fc00::/7", "fe80::/10", "ff00::/8"]
)
def test_both_ends_of_a_range_are_blocked(network: str) -> None:
    whole = ipaddress.ip_network(network)
    assert refusal(str(whole[0]))
    assert refusal(str(whole[-1]))


def test_every_embedded_loopback_is_blocked() -> None:
    for prefix in ("::", "::ffff:", "::ffff:0:", "64:ff9b::", "64:ff9b:1::", "2002:7f00:1::", "2001::"):
        assert refusal(f"{prefix}7f00:1")
