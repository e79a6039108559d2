"""Where an outbound call may go: the policy for schemes, ports, host names and addresses.

Tenants choose the URLs that workers call, and workers stand inside somebody's network. So a target is judged by the
address that is connected to, never by how its name is spelled: `AddressPolicy.addresses` resolves a name once, judges
every address of the answer, and hands back only addresses that passed; the caller connects to one of those and to
nothing else. That also defeats a name whose answer changes between the check and the connection.

The deny list is written out, because `ipaddress` alone is wrong here and differs between Python releases: `is_global`
holds for multicast, for NAT64 and 6to4 forms of 127.0.0.1, for fec0::/10. IPv6 is turned around: only 2000::/3 is
reachable, minus what IANA took out of it, and an address that carries an IPv4 address is judged by that one too.

A refusal is `Fatal` with code ``target_refused`` and a sentence that names the rule and the way for an operator to
allow the target. A name that does not resolve is `RetryLater`, since resolvers fail for a while.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

import httpx

from engine.errors import ConfigurationError, Fatal, RetryLater

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Resolver: TypeAlias = Callable[[str, int], Sequence[str]]
"""(host, port) -> the textual addresses of the host, in the order to try them. Raises OSError when there are none."""

DEFAULT_PORTS = {"http": 80, "https": 443}
FIRST_UNPRIVILEGED_PORT = 1024
MAX_URL_LENGTH = 8192

_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,252}[a-z0-9_.])?")
_IPV4_DENIED: tuple[tuple[IPv4Network, str], ...] = tuple(
    (IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "an unspecified address"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a shared address of a provider (RFC 6598)"),
        ("127.0.0.0/8", "a loopback address"),
        ("168.63.129.16/32", "the platform address of a cloud"),
        ("169.254.0.0/16", "a link-local address, where clouds keep instance metadata"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "an address for protocol assignments"),
        ("192.0.2.0/24", "a documentation address"),
        ("192.88.99.0/24", "a 6to4 relay address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "an address for benchmarks"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
    )
)
_IPV6_GLOBAL = IPv6Network("2000::/3")
_IPV6_DENIED: tuple[tuple[IPv6Network, str], ...] = tuple(
    (IPv6Network(network), kind)
    for network, kind in (
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("::/96", "an IPv4-compatible address"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a site-local address"),
        ("ff00::/8", "a multicast address"),
        ("2001::/32", "a Teredo address"),
        ("2001::/23", "an address for protocol assignments"),
        ("2001:db8::/32", "a documentation address"),
        ("3fff::/20", "a documentation address"),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_METADATA = frozenset(
    ip_address(address)
    for address in (
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "fd00:ec2::254",
    )
)


def system_resolver(host: str, port: int) -> Sequence[str]:
    """The addresses that the machine's own resolver gives for a TCP connection. May block for many seconds."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in answers))


def embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that traffic to `address` ends at: v4-mapped, 6to4 or NAT64; None for a plain one."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


def denial(address: Address) -> str | None:
    """What kind of address this is when nobody may reach it by default, else None: the address is public."""
    if isinstance(address, IPv4Address):
        return next((kind for network, kind in _IPV4_DENIED if address in network), None)
    inner = embedded_ipv4(address)
    if inner is not None:
        reason = denial(inner)
        return None if reason is None else f"{reason} ({inner}) written as IPv6"
    for network, kind in _IPV6_DENIED:
        if address in network:
            return kind
    return None if address in _IPV6_GLOBAL else "an IPv6 address outside the public range"


@dataclass(frozen=True, slots=True)
class Target:
    """One place that a URL names: scheme, host (lower case, ASCII, no brackets) and port."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            f"{self.scheme}://{host}"
            if self.port == DEFAULT_PORTS[self.scheme]
            else f"{self.scheme}://{host}:{self.port}"
        )


def refused(subject: str, rule: str, *, operator: str = "") -> Fatal:
    """The error for a target that may not be called."""
    return Fatal(f"{subject} may not be called: {rule}.{operator}", code="target_refused")


def parse_url(text: str) -> httpx.URL:
    """A normalised absolute http or https URL without user name and password; anything else is refused."""
    if len(text) > MAX_URL_LENGTH:
        raise refused("The URL", f"it is longer than {MAX_URL_LENGTH} characters")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError, UnicodeError) as error:
        raise Fatal("The URL cannot be read; write it as https://host/path.", code="invalid_url") from error
    if url.scheme not in DEFAULT_PORTS:
        raise refused("The URL", "only http:// and https:// are supported")
    if url.userinfo:
        raise refused("The URL", "it holds a user name or password; keep those in a credential")
    if not url.host:
        raise Fatal("The URL has no host; write it as https://host/path.", code="invalid_url")
    return url


class AddressPolicy:
    """The default rules plus what the operator allowed by name. Immutable; shared by all threads.

    `allowed` items are networks (``10.0.0.0/8``), addresses, or ``host:port`` (``localhost:8025``, ``[::1]:80``).
    A bad item raises `ConfigurationError`.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        networks: list[Network] = []
        endpoints: set[tuple[str | Address, int]] = set()
        for item in allowed:
            parsed = _parse_allowed(item.strip())
            if isinstance(parsed, tuple):
                endpoints.add(parsed)
            else:
                networks.append(parsed)
        self._networks = tuple(networks)
        self._endpoints = frozenset(endpoints)

    def target(self, url: httpx.URL) -> Target:
        """The target of a URL whose scheme, host spelling and port are fine; its addresses are judged at connection."""
        host = url.raw_host.decode("ascii").lower()
        target = Target(scheme=url.scheme, host=host, port=url.port or DEFAULT_PORTS[url.scheme])
        address = literal(host)
        if address is None and not _HOST_NAME.fullmatch(host):
            raise Fatal("The host of the URL is not a valid host name.", code="invalid_url")
        if not self._port_allowed(host if address is None else address, target.port):
            rule = f"port {target.port} is not 80, 443 or {FIRST_UNPRIVILEGED_PORT} and above"
            raise refused(str(target), rule, operator=_operator(f"{host}:{target.port}"))
        return target

    def addresses(self, host: str, port: int, *, resolver: Resolver) -> list[str]:
        """The addresses of `host` that may be connected to, in the resolver's order; never empty.

        One forbidden address refuses the whole name, unless the operator allowed another one of them: then the
        forbidden ones are left out.
        """
        written = literal(host)
        found = [written] if written is not None else _resolve(host, port, resolver)
        judged = [(address, self._permitted(host, address, port), denial(address)) for address in found]
        usable = [str(address) for address, permitted, reason in judged if permitted or reason is None]
        bad = [(address, reason) for address, permitted, reason in judged if not permitted and reason is not None]
        if bad and not any(permitted for _, permitted, _ in judged):
            # What a name of the internal network resolves to is not a tenant's to learn: only the kind is said.
            rule = f"it {'leads to' if written is None else 'is'} {bad[0][1]}"
            raise refused(host, rule, operator=_operator(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
        return usable

    def _permitted(self, host: str, address: Address, port: int) -> bool:
        """Whether the operator's own word covers it. Metadata services need it said exactly, not by a wide network."""
        plain = address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
        if (host.rstrip("."), port) in self._endpoints or (plain, port) in self._endpoints:
            return True
        networks = (network for network in self._networks if plain in network)
        if plain in _METADATA:
            return any(network.prefixlen == network.max_prefixlen for network in networks)
        return any(True for _ in networks)

    def _port_allowed(self, host: str | Address, port: int) -> bool:
        named = (host.rstrip(".") if isinstance(host, str) else host, port) in self._endpoints
        return named or port in DEFAULT_PORTS.values() or FIRST_UNPRIVILEGED_PORT <= port <= 65535


def _operator(example: str) -> str:
    return f" An operator may allow it with FAIRLANE_ALLOWED_NETWORKS, for example {example}."


def literal(host: str) -> Address | None:
    """The address that `host` spells out, or None for a name. Odd spellings (``0x7f.1``) are names to be resolved."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _resolve(host: str, port: int, resolver: Resolver) -> list[Address]:
    try:
        # A scope ("%eth0") names a link, not a host: the address before it decides.
        found = [ip_address(text.partition("%")[0]) for text in resolver(host, port)]
    except (OSError, UnicodeError) as error:
        raise RetryLater(f"The host name {host} does not resolve.", code="dns_failed") from error
    if not found:
        raise RetryLater(f"The host name {host} has no address.", code="dns_failed")
    return found


def _parse_allowed(item: str) -> Network | tuple[str | Address, int]:
    try:
        return ip_network(item, strict=False)
    except ValueError:
        host, _, port = item.rpartition(":")
        host = host.removeprefix("[").removesuffix("]").lower()
        address = literal(host)
        if not port.isdecimal() or not 0 < int(port) < 65536 or (address is None and not _HOST_NAME.fullmatch(host)):
            raise ConfigurationError(
                f"FAIRLANE_ALLOWED_NETWORKS: {item!r} is neither a network such as 10.0.0.0/8 "
                "nor host:port such as localhost:8025."
            ) from None
        return (address or host, int(port))
