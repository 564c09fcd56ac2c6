"""Where the operator may fetch from over HTTP, as the administrator has decided. Pure.

Whoever may write a NixMachine names URLs, and derivations name more; and the operator stands in the cluster's network,
where an address without a password is often all that protects a service. So a URL has to be written the one plain way,
every address that its name shows is judged, and so is every place that an answer sends on to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urljoin

from nixops_operator.ip_addresses import Network, inner

SETTING = "nix.egress.allowedCidrs"
URL_LIMIT = 2048  # characters
_PORTS = {"http": 80, "https": 443}

# IANA's registries of special-purpose addresses (RFC 6890), as far as somebody may stand behind them that is not on the
# internet. Those of documentation (RFC 5737) are nobody's, and are let through.
_SPECIAL: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), words)
    for network, words in (
        ("0.0.0.0/8", "an address of this node itself"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a private address of a carrier"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address, as that of the instance metadata"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "an address with a meaning of its own"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "an address of test benches"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "an address with a meaning of its own"),
        ("::/128", "an address of this node itself"),
        ("::1/128", "a loopback address"),
        ("100::/64", "an address with a meaning of its own"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a private address"),
        ("ff00::/8", "a multicast address"),
    )
)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
# What the system's resolver takes for an IPv4 address: 2130706433, 0x7f.1, 017700000001 (inet_aton(3)).
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Of RFC 3986, without user names and fragments. A backslash is a slash to some readers and none to others.
_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?:#.*)?", re.IGNORECASE | re.ASCII
)
_PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII but blank and backslash


class ForbiddenError(ValueError):
    """The text says what was refused, why, and which setting would help; it holds no credential."""


@dataclass(frozen=True)
class EgressPolicy:
    """`allowed`: networks of special addresses that may be fetched from all the same, each inside of one of them.
    `denied`: networks that are refused like those, the cluster's own. `ports`: that anybody's URL may name."""

    allowed: tuple[Network, ...] = ()
    denied: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset(_PORTS.values())


@dataclass(frozen=True)
class Url:
    """One that could be read in one way only. `host`: lower case, an IPv6 address without brackets."""

    scheme: str
    host: str
    port: int
    target: str  # path and query, beginning with a slash

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}")

    def __str__(self) -> str:
        return self.origin + self.target

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """The host, if it is an address and no name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def parsed(text: str) -> Url:
    """The URL. Raises ForbiddenError for anything that two readers could read in two ways, and for what is not HTTP."""
    if len(text) > URL_LIMIT:
        raise ForbiddenError(f"a URL of more than {URL_LIMIT} characters")
    if not _PLAIN.fullmatch(text):
        raise ForbiddenError(
            "the URL holds blanks, control characters, a backslash or letters beyond ASCII; "
            "write them percent-encoded, a host's name in its ASCII form (xn--…)"
        )
    found = _URL.fullmatch(text)
    if found is None or not found["authority"]:
        raise ForbiddenError("no URL: write https://HOST/PATH")
    scheme = found["scheme"].lower()
    if scheme not in _PORTS:
        raise ForbiddenError(f"{scheme}: is not fetched, only https: and http: are")
    if "@" in found["authority"]:
        raise ForbiddenError("the URL holds a user name or password, which everybody could read; leave them out")
    host, port = _split(found["authority"].lower(), _PORTS[scheme])
    target = found["target"]
    return Url(scheme, host, port, target if target.startswith("/") else f"/{target}")


def shown(text: str) -> str:
    """A URL as messages name it, which more people read than its spec or setting: without what may be a password or a
    token, before the host or in the query."""
    place, question, _ = text.partition("?")
    scheme, slashes, rest = place.partition("//")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        authority = f"…@{authority.rpartition('@')[2]}"
    return f"{scheme}{slashes}{authority}{slash}{path}{'?…' if question else ''}"


def redirected(url: Url, location: str) -> Url:
    """Where an answer sends on to. Raises ForbiddenError as `parsed`, and for one from https to http."""
    if not _PLAIN.fullmatch(location):
        raise ForbiddenError(f"{url.origin} sends on to what is no URL")
    try:
        onward = parsed(urljoin(str(url), location))
    except ForbiddenError as error:
        raise ForbiddenError(f"{url.origin} sends on to somewhere else: {error}") from error
    except ValueError as error:
        raise ForbiddenError(f"{url.origin} sends on to what is no URL") from error
    if url.scheme == "https" and onward.scheme == "http":
        raise ForbiddenError(f"{url.origin} sends on from https to http, to {onward.host}")
    return onward


def judge_port(url: Url, policy: EgressPolicy) -> None:
    """Raises ForbiddenError for a port that is not anybody's to name."""
    if url.port not in policy.ports:
        allowed = ", ".join(map(str, sorted(policy.ports))) or "none"
        raise ForbiddenError(
            f"port {url.port} of {url.host} is none of those allowed ({allowed}; setting nix.egress.allowedPorts)"
        )


def judge_address(text: str, policy: EgressPolicy) -> None:
    """Raises ForbiddenError if nothing may be fetched from there, whatever name led to it."""
    outer = ip_address(text.partition("%")[0])
    for each in (outer, *inner(outer)):
        blocks = [(block, words) for block, words in _SPECIAL if block.version == each.version and each in block]
        blocks += [
            (block, "an address in a network that hosts.deniedCidrs names, or the API server's")
            for block in policy.denied
            if block.version == each.version and each in block
        ]
        # Each block has to be opened by a network inside of it: 0.0.0.0/0 opens none by accident.
        for block, words in blocks:
            if not any(_opens(network, block) and each in network for network in policy.allowed):
                raise ForbiddenError(
                    f"{text} is {words}; if it is meant, have it added to the operator's setting {SETTING}"
                )


def judge_addresses(host: str, addresses: Iterable[str], policy: EgressPolicy) -> None:
    """All that a name shows: one of them refused is enough, as the next look may show that one alone. Raises
    ForbiddenError."""
    for address in addresses:
        try:
            judge_address(address, policy)
        except ForbiddenError as error:
            raise ForbiddenError(str(error) if address == host else f"{host}: {error}") from error


def _opens(network: Network, block: Network) -> bool:
    if network.version == 4 and block.version == 4:
        return network.subnet_of(block)
    return network.version == 6 and block.version == 6 and network.subnet_of(block)


def _split(authority: str, default: int) -> tuple[str, int]:
    """Host and port."""
    if authority.startswith("["):
        inside, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ForbiddenError("the URL's host is malformed")
        return _ipv6(inside), _port(rest[1:], default)
    host, _, port = authority.partition(":")
    return _host(host), _port(port, default)


def _ipv6(text: str) -> str:
    try:
        if "%" in text:
            raise ValueError  # noqa: TRY301 - a zone is this node's own affair
        return str(IPv6Address(text))
    except ValueError:
        raise ForbiddenError(f"[{text}] is no IPv6 address") from None


def _host(text: str) -> str:
    host = text.removesuffix(".")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise ForbiddenError(f"{text} is no IPv4 address in four decimal numbers; write it so") from None
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ForbiddenError(f"{text[:80]} is no name of a host; one beyond ASCII is written in its ASCII form (xn--…)")
    return host


def _port(text: str, default: int) -> int:
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ForbiddenError(f"{text[:20]} is no port")
    return int(text)
