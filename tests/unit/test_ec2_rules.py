"""Rules in canonical form: what a spec says and what EC2 answers compare as sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixops_operator.ec2.rules import (
    Direction,
    PeerKind,
    Rule,
    allow_all_egress,
    canonical_network,
    canonical_ports,
    canonical_protocol,
    canonical_rule,
)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("tcp", "tcp"),
        ("TCP", "tcp"),
        ("6", "tcp"),
        ("17", "udp"),
        ("1", "icmp"),
        ("58", "icmpv6"),
        ("all", "-1"),
        ("-1", "-1"),
        ("50", "50"),
        ("050", "50"),
        ("006", "tcp"),
        ("255", "255"),
    ],
)
def test_protocols(written: str, canonical: str) -> None:
    assert canonical_protocol(written) == canonical


@pytest.mark.parametrize("written", ["quic", "256", "", "-2", "1.5"])
def test_protocols_that_ec2_does_not_know(written: str) -> None:
    with pytest.raises(ValueError, match="protocol"):
        canonical_protocol(written)


@pytest.mark.parametrize(
    ("protocol", "first", "last", "canonical"),
    [
        pytest.param("tcp", 80, 80, (80, 80), id="one port"),
        pytest.param("udp", 0, 65535, (0, 65535), id="all ports"),
        pytest.param("icmp", 8, 0, (8, 0), id="icmp: type and code"),
        pytest.param("icmp", 8, None, (8, -1), id="icmp: all codes of a type"),
        pytest.param("icmp", None, None, (-1, -1), id="icmp: all types"),
        pytest.param("icmp", -1, 3, (-1, -1), id="icmp: no code of all types"),
        pytest.param("icmpv6", None, 3, (-1, -1), id="icmpv6: likewise"),
        pytest.param("-1", 80, 80, (None, None), id="all protocols have no ports"),
        pytest.param("50", 1, 2, (None, None), id="others have no ports"),
    ],
)
def test_ports(protocol: str, first: int | None, last: int | None, canonical: tuple[int | None, int | None]) -> None:
    assert canonical_ports(protocol, first, last) == canonical


@pytest.mark.parametrize(
    ("first", "last"),
    [
        pytest.param(None, 80, id="no first"),
        pytest.param(80, None, id="no last"),
        pytest.param(81, 80, id="reversed"),
        pytest.param(-1, 80, id="negative"),
        pytest.param(80, 65536, id="too high"),
    ],
)
def test_ports_that_are_no_range(first: int | None, last: int | None) -> None:
    with pytest.raises(ValueError, match=r"needs fromPort and toPort|not a range"):
        canonical_ports("tcp", first, last)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        pytest.param("10.0.0.5/8", (PeerKind.IPV4, "10.0.0.0/8"), id="host bits are masked"),
        pytest.param("192.0.2.1", (PeerKind.IPV4, "192.0.2.1/32"), id="a bare address"),
        pytest.param("2001:DB8:0:0::1/32", (PeerKind.IPV6, "2001:db8::/32"), id="IPv6: masked, compressed, lower case"),
        pytest.param("2001:db8::1", (PeerKind.IPV6, "2001:db8::1/128"), id="IPv6: a bare address"),
        pytest.param("::/0", (PeerKind.IPV6, "::/0"), id="IPv6: everything"),
    ],
)
def test_networks(written: str, canonical: tuple[PeerKind, str]) -> None:
    assert canonical_network(written) == canonical


@pytest.mark.parametrize("written", ["10.0.0.0/33", "10.0.0", "sg-1", "", "300.0.0.1"])
def test_networks_that_are_none(written: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        canonical_network(written)


def test_spec_and_answer_meet() -> None:
    written = canonical_rule(Direction.INGRESS, "6", 22, 22, PeerKind.IPV4, "10.1.2.3/8")
    answered = canonical_rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.IPV4, "10.0.0.0/8")

    assert written == answered
    assert {written} - {answered} == set()


def test_a_group_peer_stays_as_it_is() -> None:
    rule = canonical_rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.GROUP, "sg-0123456789abcdef0")

    assert rule == Rule(Direction.INGRESS, "tcp", 22, 22, PeerKind.GROUP, "sg-0123456789abcdef0")


def test_a_network_of_the_other_kind_is_sorted_in() -> None:
    assert canonical_rule(Direction.EGRESS, "all", None, None, PeerKind.IPV4, "::/0").peer_kind is PeerKind.IPV6


def test_what_a_new_group_lets_out() -> None:
    assert allow_all_egress() == canonical_rule(Direction.EGRESS, "all", None, None, PeerKind.IPV4, "0.0.0.0/0")


@given(
    st.sampled_from(["tcp", "TCP", "17", "icmp", "58", "all", "50", "006"]),
    st.integers(0, 255),
    st.integers(0, 255),
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str),
)
def test_canonical_is_a_fixed_point(protocol: str, first: int, span: int, peer: str) -> None:
    once = canonical_rule(Direction.INGRESS, protocol, first, first + span, PeerKind.IPV4, peer)

    assert canonical_rule(*(getattr(once, name) for name in Rule.__dataclass_fields__)) == once
