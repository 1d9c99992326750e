"""Which URLs and lengths of time the client takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flowfabric.client.durations import instant_ms, milliseconds
from flowfabric.client.endpoint import is_server_url, parse_endpoint
from flowfabric.contract.errors import Misuse


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:9090", "http://127.0.0.1:9090"),
        ("http://127.0.0.1:9090/", "http://127.0.0.1:9090"),
        ("HTTPS://Example.org/flow/fabric//", "https://Example.org/flow/fabric"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_base_paths_stay_and_trailing_slashes_go(url: str, base: str) -> None:
    """A server's URL may have a base path; a trailing slash makes no difference.

    Acceptance: trailing-slash-makes-no-difference
    """
    assert parse_endpoint(url).base == base


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org",
        "127.0.0.1:9090",
        "http://",
        "http:///x",
        "http://example.org:port",
        "http://example.org:99999",
        "http://example.org/?a=b",
        "http://example.org/#a",
        "http://example.org/?",
        "http://example.org/a b",
        "http://example.org/\r\nX: y",
        "http://exämple.org",
        "",
    ],
)
def test_odd_urls_are_refused(url: str) -> None:
    """Anything but a plain http or https address is refused with an example of one."""
    with pytest.raises(Misuse, match=r"http://127\.0\.0\.1:9090"):
        parse_endpoint(url)


def test_credentials_in_urls_are_refused_and_not_repeated() -> None:
    """A password in the URL is refused, and the message does not contain it."""
    with pytest.raises(Misuse) as caught:
        parse_endpoint("http://user:s3cret@example.org")
    assert "s3cret" not in str(caught.value)


def test_paths_and_queries_go_behind_the_base() -> None:
    """Paths and queries are taken as they are: they come encoded."""
    endpoint = parse_endpoint("http://example.org/base/")
    assert endpoint.url("/v1/x%7B", "a=1%20") == "http://example.org/base/v1/x%7B?a=1%20"
    assert endpoint.url("/v1/x") == "http://example.org/base/v1/x"


def test_store_urls_are_no_server_urls() -> None:
    """Only http and https URLs name servers."""
    assert is_server_url("https://example.org")
    assert not is_server_url("sqlite:///http.db")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 1_500),
        (0, 0),
        ("250ms", 250),
        ("1h30m", 5_400_000),
        (" 2 d ", 172_800_000),
        ("1.5s", 1_500),
        (timedelta(minutes=2), 120_000),
    ],
)
def test_lengths_of_time(value: Any, expected: int) -> None:
    """Lengths of time are numbers of seconds, timedeltas, or text with units."""
    assert milliseconds(value, "delay") == expected


@pytest.mark.parametrize(
    "value", ["", "30", "5 parsecs", -1, float("inf"), float("nan"), "-5s", timedelta(-1), 1e12]
)
def test_odd_lengths_of_time_are_refused(value: Any) -> None:
    """A length of time without a unit, negative or without end is refused by the option's name."""
    with pytest.raises(Misuse, match="delay"):
        milliseconds(value, "delay")


def test_instants_need_a_time_zone() -> None:
    """A datetime without a time zone could mean several instants and is refused."""
    assert instant_ms(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), "deadline") == 1_000
    with pytest.raises(Misuse, match="time zone"):
        instant_ms(datetime(2030, 1, 1), "deadline")
