"""Which targets may be called: the whole table of addresses and spellings, without a socket."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actions.guard import AddressPolicy, Resolver, denial, parse_url
from engine.errors import ConfigurationError, Fatal, RetryLater

DENIED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:0a00:0001::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "4000::1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.1",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:82a::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
]


def answering(*addresses: str) -> Resolver:
    return lambda host, port: list(addresses)


def numeric_resolver(host: str, port: int) -> list[str]:
    """The machine's reading of odd spellings such as 0x7f.1, and of localhost; no name leaves the machine."""
    if host.rstrip(".") == "localhost":
        return ["127.0.0.1", "::1"]
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [str(sockaddr[0]) for *_, sockaddr in answers]


def addresses(url: str, policy: AddressPolicy | None = None, *, answers: tuple[str, ...] | None = None) -> list[str]:
    """What a call to `url` would connect to."""
    chosen = policy or AddressPolicy()
    target = chosen.target(parse_url(url))
    resolver = numeric_resolver if answers is None else answering(*answers)
    return chosen.addresses(target.host, target.port, resolver=resolver)


@pytest.mark.parametrize("address", DENIED)
def test_an_address_that_is_not_public_is_denied(address: str) -> None:
    assert denial(ipaddress.ip_address(address)) is not None
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(Fatal) as caught:
        addresses(f"http://{host}/")
    assert caught.value.error_code == "target_refused"
    assert "FAIRLANE_ALLOWED_NETWORKS" in caught.value.detail


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert denial(ipaddress.ip_address(address)) is None
    host = f"[{address}]" if ":" in address else address
    assert [ipaddress.ip_address(found) for found in addresses(f"https://{host}/")] == [ipaddress.ip_address(address)]


@pytest.mark.parametrize("address", DENIED)
def test_a_name_is_judged_by_what_it_resolves_to(address: str) -> None:
    with pytest.raises(Fatal) as caught:
        addresses("http://innocent.example/", answers=(address,))
    assert address not in caught.value.detail, "the inside of a network is not a tenant's to learn"


@pytest.mark.parametrize(
    "url",
    [
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0/",
        "http://127。0。0。1/",
        "http://127.0.0.1。/",
        "http://①②⑦.⓪.⓪.①/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::1%25lo]/",
        "http://[fe80::1%25eth0]/",
        "http://localhost/",
        "http://LOCALHOST:8080/",
        "http://localhost./",
        "http://a.com\\@127.0.0.1/",
        "http://public.example@127.0.0.1/",
        "http://127.0.0.1:80@public.example/",
        "http://0xa9fea9fe/latest/meta-data/",
        "http://169.254.169.254.:80/",
        "http://%31%32%37.0.0.1/",
        "http://127.0.0.1 .example/",
        "http:///127.0.0.1/",
        "http://exa\tmple/",
        "http://ex\r\nample/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_INFO",
        "ftp://127.0.0.1/",
        "unix:///var/run/docker.sock",
        "dict://127.0.0.1/",
        "//127.0.0.1/",
        "127.0.0.1",
        "",
        "http://h/" + "a" * 9000,
        "http://127.0.0.1:99999/",
        "http://public.example:notaport/",
    ],
)
def test_no_spelling_gets_around_the_rules(url: str) -> None:
    with pytest.raises((Fatal, RetryLater)) as caught:
        addresses(url)
    assert caught.value.error_code in {"target_refused", "invalid_url", "dns_failed"}


@pytest.mark.parametrize(
    ("port", "fine"),
    [(80, True), (443, True), (1024, True), (8080, True), (8443, True), (65535, True)]
    + [(port, False) for port in (1, 21, 22, 23, 25, 53, 110, 111, 139, 389, 445, 993, 1023)],
)
def test_low_ports_other_than_those_of_http_are_refused(port: int, fine: bool) -> None:
    url = f"http://93.184.216.34:{port}/"
    if fine:
        assert addresses(url) == ["93.184.216.34"]
    else:
        with pytest.raises(Fatal, match=f"port {port} is not"):
            addresses(url)
        assert addresses(url, AddressPolicy([f"93.184.216.34:{port}"])) == ["93.184.216.34"]


def test_one_forbidden_address_refuses_the_whole_name() -> None:
    with pytest.raises(Fatal):
        addresses("http://mixed.example/", answers=("93.184.216.34", "10.0.0.5"))


def test_a_name_that_does_not_resolve_may_be_tried_again() -> None:
    def failing(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    for resolver in (failing, answering()):
        with pytest.raises(RetryLater) as caught:
            AddressPolicy().addresses("nowhere.example", 80, resolver=resolver)
        assert caught.value.error_code == "dns_failed"


@pytest.mark.parametrize(
    ("allowed", "url", "answers"),
    [
        ("10.0.0.0/8", "http://10.1.2.3/", None),
        ("10.0.0.0/8", "http://crm.internal/", ("10.1.2.3",)),
        ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/", None),
        ("10.1.2.3", "http://10.1.2.3:9000/", None),
        ("fd00::/8", "http://[fd00::1]/", None),
        ("127.0.0.1:9999", "http://127.0.0.1:9999/", None),
        ("127.0.0.1:9999", "http://somename:9999/", ("::1", "127.0.0.1")),
        ("localhost:8025", "http://localhost:8025/", ("::1", "127.0.0.1")),
        ("LocalHost:8025", "http://localhost.:8025/", ("127.0.0.1",)),
        ("[::1]:8025", "http://[::1]:8025/", None),
        ("127.0.0.1:25", "http://127.0.0.1:25/", None),
        ("169.254.169.254/32", "http://169.254.169.254/", None),
    ],
)
def test_the_operators_word_opens_what_it_names(allowed: str, url: str, answers: tuple[str, ...] | None) -> None:
    assert addresses(url, AddressPolicy([allowed]), answers=answers)


@pytest.mark.parametrize(
    ("allowed", "url", "answers"),
    [
        ("10.0.0.0/8", "http://192.168.0.1/", None),
        ("10.0.0.0/8", "http://10.1.2.3:25/", None),
        ("127.0.0.1:9999", "http://127.0.0.1:9998/", None),
        ("localhost:8025", "http://127.0.0.1:8025/", None),
        ("localhost:8025", "http://evil.example:8025/", ("127.0.0.1",)),
        ("169.254.0.0/16", "http://169.254.169.254/", None),
        ("0.0.0.0/0", "http://169.254.169.254/", None),
        ("0.0.0.0/0", "http://[::1]/", None),
        ("10.0.0.0/8", "http://[2002:a00:1::1]/", None),
    ],
)
def test_the_operators_word_opens_nothing_beside_it(allowed: str, url: str, answers: tuple[str, ...] | None) -> None:
    with pytest.raises(Fatal):
        addresses(url, AddressPolicy([allowed]), answers=answers)


def test_forbidden_answers_beside_an_allowed_one_are_left_out() -> None:
    policy = AddressPolicy(["127.0.0.1:9999"])
    assert addresses("http://localhost:9999/", policy, answers=("::1", "127.0.0.1")) == ["127.0.0.1"]


@pytest.mark.parametrize(
    "item", ["", "nonsense", "host:", "host:0", "host:70000", ":80", "*:80", "10.0.0.0/99", "a b:80"]
)
def test_a_bad_item_is_a_configuration_error_that_names_it(item: str) -> None:
    with pytest.raises(ConfigurationError, match="FAIRLANE_ALLOWED_NETWORKS"):
        AddressPolicy([item])


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_every_ipv6_form_of_an_ipv4_address_is_judged_like_it(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    forms = [(0xFFFF << 32) | number, (0x0064FF9B << 96) | number, (0x2002 << 112) | (number << 80)]
    for form in forms:
        assert (denial(ipaddress.IPv6Address(form)) is None) == (denial(plain) is None)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_nothing_that_python_calls_special_is_allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    special = address.is_private or address.is_loopback or address.is_multicast or address.is_link_local
    embeds = isinstance(address, ipaddress.IPv6Address) and (address.sixtofour or address.ipv4_mapped)
    if special and not embeds:
        assert denial(address) is not None
