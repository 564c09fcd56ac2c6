"""Which URLs and addresses the operator fetches from: tenants write them, the administrator decides."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from nixops_operator.egress_policy import (
    EgressPolicy,
    ForbiddenError,
    judge_address,
    judge_addresses,
    judge_port,
    parsed,
    redirected,
    shown,
)

API_SERVER = "198.51.100.7"
POLICY = EgressPolicy(denied=tuple(map(ip_network, (f"{API_SERVER}/32", "100.100.0.0/16", "2001:db8:1::/48"))))


def allowing(*networks: str) -> EgressPolicy:
    return EgressPolicy(allowed=tuple(map(ip_network, networks)), denied=POLICY.denied)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        pytest.param("https://cache.nixos.org", "https://cache.nixos.org/", id="a host alone"),
        pytest.param("HTTPS://Cache.NixOS.org:443/nar/x", "https://cache.nixos.org/nar/x", id="case and default port"),
        pytest.param("http://203.0.113.80:8080/a?b=c", "http://203.0.113.80:8080/a?b=c", id="an address, a port"),
        pytest.param("https://[2001:DB8::1]/x", "https://[2001:db8::1]/x", id="IPv6"),
        pytest.param("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/", id="IDN in its ASCII form"),
        pytest.param("https://example.org./x", "https://example.org/x", id="a dot at the end"),
        pytest.param("https://example.org/a%20b#part", "https://example.org/a%20b", id="a fragment is nobody's"),
        pytest.param("https://example.org?x=1", "https://example.org/?x=1", id="a query without a path"),
        pytest.param("https://a_b.example.org/", "https://a_b.example.org/", id="an underscore"),
    ],
)
def test_what_is_understood(url: str, shown: str) -> None:
    assert str(parsed(url)) == shown


@pytest.mark.parametrize(
    ("url", "words"),
    [
        pytest.param("ftp://example.org/x", "only https", id="another scheme"),
        pytest.param("file:///etc/passwd", "no URL", id="a file"),
        pytest.param("https:/example.org", "no URL", id="one slash"),
        pytest.param("https:///x", "no URL", id="no host"),
        pytest.param("https://me:secret@example.org/", "user name", id="userinfo"),
        pytest.param("https://example.org@169.254.169.254/", "user name", id="a host before the @"),
        pytest.param("http://2130706433/", "four decimal numbers", id="decimal"),
        pytest.param("http://0x7f000001/", "four decimal numbers", id="hexadecimal"),
        pytest.param("http://0x7f.0.0.1/", "four decimal numbers", id="hexadecimal part"),
        pytest.param("http://017700000001/", "four decimal numbers", id="octal"),
        pytest.param("http://0177.0.0.1/", "four decimal numbers", id="octal part"),
        pytest.param("http://127.1/", "four decimal numbers", id="short"),
        pytest.param("http://example.1/", "four decimal numbers", id="a name that ends in a number"),
        pytest.param("http://127.0.0.1:0/", "no port", id="port 0"),
        pytest.param("http://example.org:65536/", "no port", id="a port too high"),
        pytest.param("http://example.org:8 0/", "blanks", id="a blank"),
        pytest.param("http://example.org\\@evil.example/", "backslash", id="a backslash"),
        pytest.param("http://example.org/\r\nHost: x", "control", id="a header in the URL"),
        pytest.param("https://bücher.example/", "xn--", id="IDN"),
        pytest.param("https://ⓔxample.org/", "xn--", id="letters that become others"),
        pytest.param("http://127。0。0。1/", "xn--", id="dots that become dots"),
        pytest.param("http://127.0.0.1%2f@example.org/", "user name", id="an escaped slash before the @"),
        pytest.param("http://%6cocalhost/", "no name of a host", id="an escaped name"),
        pytest.param("http://%31%32%37.0.0.1/", "four decimal numbers", id="an escaped host"),
        pytest.param("http://[fe80::1%25eth0]/", "no IPv6", id="a zone"),
        pytest.param("http://[::1/", "malformed", id="a bracket without an end"),
        pytest.param("http://[::1]x/", "malformed", id="more behind the bracket"),
        pytest.param("http://a..b/", "no name of a host", id="an empty label"),
        pytest.param("http://-x.example/", "no name of a host", id="a dash in front"),
        pytest.param(f"https://example.org/{'x' * 2048}", "2048", id="too long"),
        pytest.param("", "blanks", id="nothing"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(url: str, words: str) -> None:
    with pytest.raises(ForbiddenError, match=words):
        parsed(url)


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(ForbiddenError) as refused:
        parsed("https://me:hunter2@example.org/")
    assert "hunter2" not in str(refused.value)


SPECIAL = [
    pytest.param("169.254.169.254", "169.254.169.254/32", id="instance metadata"),
    pytest.param("fd00:ec2::254", "fd00:ec2::/32", id="instance metadata over IPv6"),
    pytest.param("127.0.0.1", "127.0.0.0/8", id="loopback"),
    pytest.param("::1", "::1/128", id="IPv6 loopback"),
    pytest.param("0.0.0.0", "0.0.0.0/8", id="unspecified"),
    pytest.param("0.1.2.3", "0.0.0.0/8", id="this network"),
    pytest.param("::", "::/128", id="IPv6 unspecified"),
    pytest.param("10.96.0.1", "10.96.0.0/12", id="a service"),
    pytest.param("10.244.1.2", "10.244.0.0/16", id="a pod"),
    pytest.param("172.31.0.2", "172.16.0.0/12", id="private, 172.16/12"),
    pytest.param("192.168.1.1", "192.168.1.0/24", id="private, 192.168/16"),
    pytest.param("100.64.0.1", "100.64.0.0/10", id="carrier-grade NAT"),
    pytest.param("198.18.0.1", "198.18.0.0/15", id="test benches"),
    pytest.param("224.0.0.1", "224.0.0.1/32", id="multicast"),
    pytest.param("255.255.255.255", "255.255.255.255/32", id="broadcast"),
    pytest.param("fc00::1", "fc00::/7", id="ULA"),
    pytest.param("fe80::1", "fe80::/10", id="IPv6 link-local"),
    pytest.param("ff02::1", "ff02::1/128", id="IPv6 multicast"),
    pytest.param(API_SERVER, f"{API_SERVER}/32", id="the API server, public as it is"),
    pytest.param("2001:db8:1::5", "2001:db8:1::/64", id="a denied IPv6 network"),
]


@pytest.mark.parametrize(("address", "opening"), SPECIAL)
def test_special_addresses_are_refused_until_a_network_inside_of_theirs_is_allowed(address: str, opening: str) -> None:
    for policy in (POLICY, allowing("0.0.0.0/0", "::/0")):
        with pytest.raises(ForbiddenError, match=r"nix\.egress\.allowedCidrs"):
            judge_address(address, policy)
    judge_address(address, allowing(opening))


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("::ffff:169.254.169.254", id="mapped"),
        pytest.param("::127.0.0.1", id="compatible"),
        pytest.param("64:ff9b::10.0.0.1", id="NAT64"),
        pytest.param("64:ff9b:1::169.254.169.254", id="local NAT64"),
        pytest.param("2002:7f00:1::", id="6to4"),
        pytest.param("2001:0:c000:201::80ff:fffe", id="Teredo"),
        pytest.param("2001:db8::5efe:10.0.0.1", id="ISATAP"),
        pytest.param("fe80::1%eth0", id="with a zone"),
    ],
)
def test_an_address_inside_of_another_is_judged(address: str) -> None:
    with pytest.raises(ForbiddenError):
        judge_address(address, POLICY)


@pytest.mark.parametrize("address", ["151.101.1.91", "2a04:4e42::603", "203.0.113.80", "64:ff9b::151.101.1.91"])
def test_the_internet_is_open(address: str) -> None:
    judge_address(address, POLICY)


def test_an_address_in_two_networks_needs_both_opened() -> None:
    """100.100.0.0/16 is the cluster's own, and lies in the carriers' block."""
    judge_address("100.100.0.9", allowing("100.100.0.9/32"))
    with pytest.raises(ForbiddenError, match="deniedCidrs"):
        judge_address("100.100.0.9", allowing("100.64.0.0/10"))


def test_one_refused_address_of_a_name_is_enough() -> None:
    with pytest.raises(ForbiddenError, match=r"evil\.example: 10\.0\.0\.5 is a private address"):
        judge_addresses("evil.example", ["203.0.113.80", "10.0.0.5"], POLICY)


@pytest.mark.parametrize(
    ("location", "to"),
    [
        pytest.param("/other", "https://example.org/other", id="a path"),
        pytest.param("//cdn.example/x", "https://cdn.example/x", id="another host"),
        pytest.param("https://cdn.example:443/x", "https://cdn.example/x", id="a whole URL"),
    ],
)
def test_where_an_answer_sends_on_to(location: str, to: str) -> None:
    assert str(redirected(parsed("https://example.org/a/b"), location)) == to


@pytest.mark.parametrize(
    ("location", "words"),
    [
        pytest.param("http://example.org/x", "https to http", id="out of TLS"),
        pytest.param("file:///etc/passwd", "sends on to", id="a file"),
        pytest.param("gopher://127.0.0.1:6379/_x", "only https", id="another scheme"),
        pytest.param("https://x:y@example.org/", "user name", id="userinfo"),
        pytest.param("http://0x7f.1/", "sends on to", id="a strange number"),
        pytest.param("", "no URL", id="nowhere"),
        pytest.param("https://[::1", "sends on to", id="malformed"),
    ],
)
def test_answers_do_not_send_anywhere(location: str, words: str) -> None:
    with pytest.raises(ForbiddenError, match=words):
        redirected(parsed("https://example.org/"), location)


def test_a_message_keeps_to_itself_what_a_query_says() -> None:
    assert shown("https://example.org/x.tar.gz?private_token=abc?d") == "https://example.org/x.tar.gz?…"
    assert shown("https://example.org/x.tar.gz") == "https://example.org/x.tar.gz"
    assert shown("https://me:hunter2@example.org/x?y") == "https://…@example.org/x?…"
    assert shown("https://example.org/@scope/x") == "https://example.org/@scope/x"


def test_ports_are_those_of_the_web_until_the_administrator_adds_some() -> None:
    judge_port(parsed("https://example.org/"), POLICY)
    with pytest.raises(ForbiddenError, match=r"port 6443 of example\.org .*allowedPorts"):
        judge_port(parsed("https://example.org:6443/"), POLICY)
    judge_port(parsed("https://example.org:6443/"), EgressPolicy(ports=frozenset({6443})))
