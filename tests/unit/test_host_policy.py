"""Which addresses and ports the operator connects to: the tenant chooses, the administrator decides."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked
from nixops_operator.host_policy import HostPolicy, choose, judge, judge_instance

POLICY = HostPolicy(
    allowed=(IPv4Network("192.0.2.0/24"), IPv4Network("10.0.0.0/8"), IPv6Network("2001:db8::/32")),
    denied=(IPv4Network("10.96.0.0/12"), IPv6Network("2001:db8:1::/48")),
)
EVERYTHING = HostPolicy(allowed=(IPv4Network("0.0.0.0/0"), IPv6Network("::/0")), denied=POLICY.denied)

NOBODYS = [
    pytest.param("127.0.0.1", "loopback", id="loopback"),
    pytest.param("127.8.8.8", "loopback", id="another loopback"),
    pytest.param("::1", "loopback", id="IPv6 loopback"),
    pytest.param("169.254.169.254", "link-local", id="the metadata service"),
    pytest.param("fe80::1", "link-local", id="IPv6 link-local"),
    pytest.param("fe80::1%eth0", "link-local", id="with a zone"),
    pytest.param("fd00:ec2::254", "meaning of its own", id="the metadata service over IPv6"),
    pytest.param("0.0.0.0", "meaning of its own", id="unspecified"),
    pytest.param("0.0.0.1", "meaning of its own", id="this network"),
    pytest.param("::", "meaning of its own", id="IPv6 unspecified"),
    pytest.param("255.255.255.255", "meaning of its own", id="broadcast"),
    pytest.param("224.0.0.1", "multicast", id="multicast"),
    pytest.param("ff02::1", "multicast", id="IPv6 multicast"),
    pytest.param("::ffff:127.0.0.1", "loopback", id="mapped"),
    pytest.param("::127.0.0.1", "loopback", id="IPv4-compatible"),
    pytest.param("64:ff9b::127.0.0.1", "loopback", id="NAT64"),
    pytest.param("64:ff9b:1::169.254.169.254", "link-local", id="local NAT64"),
    pytest.param("2002:7f00:1::", "loopback", id="6to4"),
    pytest.param("2001:0:c000:201::80ff:fffe", "loopback", id="Teredo client"),
    pytest.param("2001:db8::5efe:127.0.0.1", "loopback", id="ISATAP"),
]
DENIED = [
    pytest.param("10.96.0.1", id="the cluster's services"),
    pytest.param("::ffff:10.96.0.1", id="mapped"),
    pytest.param("64:ff9b::10.96.0.1", id="NAT64"),
    pytest.param("2002:a60:1::", id="6to4"),
    pytest.param("2001:db8:1::7", id="IPv6"),
]


@pytest.mark.parametrize(("address", "words"), NOBODYS)
def test_what_is_no_machines_own_is_refused_whoever_allows_it(address: str, words: str) -> None:
    assert words in str(judge(address, 22, EVERYTHING))
    assert words in str(judge_instance(address, EVERYTHING))


@pytest.mark.parametrize("address", DENIED)
def test_a_denied_network_is_refused_also_where_a_vpc_overlaps_it(address: str) -> None:
    assert "hosts.deniedCidrs" in str(judge(address, 22, EVERYTHING))
    assert "hosts.deniedCidrs" in str(judge_instance(address, EVERYTHING))


@pytest.mark.parametrize(
    "address",
    ["198.51.100.7", "2001:db9::1", "::ffff:198.51.100.7", "64:ff9b::198.51.100.7", "2002:c633:6407::"],
)
def test_a_given_host_must_lie_where_the_administrator_says_and_an_instance_need_not(address: str) -> None:
    assert "hosts.allowedCidrs" in str(judge(address, 22, POLICY))
    assert judge_instance(address, POLICY) is None


@pytest.mark.parametrize(
    "address", ["192.0.2.10", "10.1.2.3", "2001:db8::1", "::ffff:192.0.2.10", "64:ff9b::192.0.2.10"]
)
def test_what_is_allowed_is_not_refused(address: str) -> None:
    assert judge(address, 22, POLICY) is None


def test_by_default_nothing_is_allowed() -> None:
    assert judge("192.0.2.10", 22, HostPolicy()) is not None


@pytest.mark.parametrize("port", [1, 2222, 6443, 10250])
def test_only_allowed_ports_are_knocked_at(port: int) -> None:
    assert judge("192.0.2.10", port, POLICY) == (
        f"port {port} is none that the administrator allows (22); "
        "have it added to the operator's setting hosts.allowedPorts"
    )
    assert judge("192.0.2.10", port, HostPolicy(POLICY.allowed, (), (22, port))) is None


def test_the_first_address_that_is_allowed_is_taken() -> None:
    assert choose(["198.51.100.7", "192.0.2.11", "192.0.2.10"], 22, POLICY) == "192.0.2.11"


def test_where_all_are_refused_the_first_is_named() -> None:
    with pytest.raises(Blocked) as caught:
        choose(["198.51.100.7", "127.0.0.1"], 22, POLICY)
    assert caught.value.reason is Reason.HOST_FORBIDDEN
    assert caught.value.message.startswith("198.51.100.7 ")
