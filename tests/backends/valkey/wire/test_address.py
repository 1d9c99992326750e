"""URLs: five forms, and a sentence for each way to get one wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from flowfabric.backends.valkey.wire import Address, parse_url
from flowfabric.backends.valkey.wire.address import Endpoint, Tls
from flowfabric.contract.errors import Misuse


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("valkey://localhost", Address(seeds=(Endpoint("localhost", 6379),))),
        ("valkey://localhost/", Address(seeds=(Endpoint("localhost", 6379),))),
        ("valkey://10.0.0.1:7000/3", Address(seeds=(Endpoint("10.0.0.1", 7000),), database=3)),
        ("valkey://[::1]:7000", Address(seeds=(Endpoint("::1", 7000),))),
        ("valkey://:secret@h", Address(seeds=(Endpoint("h", 6379),), password="secret")),
        (
            "valkey://me:p%40ss%2F%3A@h:1/2",
            Address(seeds=(Endpoint("h", 1),), database=2, username="me", password="p@ss/:"),
        ),
        (
            "valkeys://h:1?ca=/tmp/ca.pem&cert=c.pem&key=k.pem&insecure=1",
            Address(seeds=(Endpoint("h", 1),), tls=Tls("/tmp/ca.pem", "c.pem", "k.pem", insecure=True)),
        ),
        ("valkey+unix:///run/v.sock", Address(seeds=(Endpoint(path="/run/v.sock"),))),
        (
            "valkey+unix:///run/v.sock?db=4&user=me&password=a%20b+c",
            Address(seeds=(Endpoint(path="/run/v.sock"),), database=4, username="me", password="a b+c"),
        ),
        (
            "valkey+cluster://u:p@a:1,b:2,[::1]:3",
            Address(
                seeds=(Endpoint("a", 1), Endpoint("b", 2), Endpoint("::1", 3)),
                is_cluster=True,
                username="u",
                password="p",
            ),
        ),
        (
            "valkeys+cluster://a:1?ca=x",
            Address(seeds=(Endpoint("a", 1),), is_cluster=True, tls=Tls(ca="x")),
        ),
    ],
)
def test_a_url_says_where_and_how(url: str, address: Address) -> None:
    """Each form of URL is read in full."""
    assert parse_url(url) == address


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://h", "begins with one of"),
        ("valkey:h", "begins with one of"),
        ("", "begins with one of"),
        ("valkey://", "each host"),
        ("valkey://h:0", "a port is a number"),
        ("valkey://h:65536", "a port is a number"),
        ("valkey://h:", "a port is a number"),
        ("valkey://h:x", "a port is a number"),
        ("valkey://h:\u0661", "a port is a number"),
        ("valkey://h/x", "a database is a number"),
        ("valkey://h/-1", "a database is a number"),
        ("valkey://h/0/1", "a database is a number"),
        ("valkey://h/65536", "a database is a number"),
        ("valkey://a:1,b:2", "valkey+cluster://"),
        ("valkey+cluster://a:1/0", "no database numbers"),
        ("valkey+cluster://a:1,,b:2", "each host"),
        ("valkey://h?ca=x", "no option 'ca'"),
        ("valkeys://h?verify=no", "no option 'verify'"),
        ("valkeys://h?insecure=yes", "insecure is 0 or 1"),
        ("valkeys://h?insecure=1&insecure=1", "twice"),
        ("valkeys://h?key=k", "give cert= as well"),
        ("valkeys://h?ca", "name=value"),
        ("valkey://me@h", "a user needs a password"),
        ("valkey://::1", "IPv6 in brackets"),
        ("valkey://me:hun/ter2@h", "%2F"),
        ("valkeys://me:hun?ter2@h", "%3F"),
        ("valkey://[::1", "in brackets"),
        ("valkey://[::1]x", "in brackets"),
        ("valkey://h#x", "percent-encode"),
        ("valkey://h h", "percent-encode"),
        ("valkey+unix://v.sock", "three slashes"),
        ("valkey+unix:///run/", "three slashes"),
        ("valkey+unix:///v.sock?user=me", "a user needs a password"),
        ("valkey+unix:///v.sock?ca=x", "no option 'ca'"),
    ],
)
def test_a_wrong_url_is_explained(url: str, why: str) -> None:
    """What is malformed, unknown or contradictory is refused with a sentence that says what to do."""
    with pytest.raises(Misuse) as refused:
        parse_url(url)
    assert why in refused.value.message


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("valkey://me:secret@h:1/2", "valkey://h:1/2"),
        ("valkeys://:secret@[::1]:1?ca=x", "valkeys://[::1]:1/0"),
        ("valkey+unix:///v.sock?db=3&password=secret", "valkey+unix:///v.sock?db=3"),
        ("valkeys+cluster://me:secret@a:1,b:2", "valkeys+cluster://a:1,b:2"),
    ],
)
def test_no_representation_shows_the_password(url: str, public: str) -> None:
    """The public URL and the representation name the place and nothing else."""
    address = parse_url(url)
    assert address.public_url == public
    assert "secret" not in repr(address) + str(address)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(rest: str) -> None:
    """Whatever follows the scheme gives an address or a `Misuse` that does not repeat it."""
    for scheme in ("valkey", "valkeys", "valkey+unix", "valkey+cluster", "valkeys+cluster"):
        try:
            address = parse_url(f"{scheme}://me:hunter2@{rest}")
        except Misuse as refused:
            assert "hunter2" not in refused.message
        else:
            assert address.seeds
