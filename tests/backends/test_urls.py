"""What may be shown of a store's URL, and what is added to it."""

from __future__ import annotations

import pytest

from flowfabric.backends.urls import has_credentials, kind_of, public_url, with_credentials, with_option

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("sqlite:///a.db", "sqlite"),
        ("valkey://h", "valkey"),
        ("valkeys+cluster://a,b", "valkey"),
        ("valkey+unix:///s", "valkey"),
        ("postgresql://h/d", "postgres"),
        ("postgres://h/d", "postgres"),
        ("valkey", None),
        ("valkey:h", None),
        ("redis://h", None),
        ("http://h", None),
        ("", None),
    ],
)
def test_kind(url: str, kind: str | None) -> None:
    """The scheme says what kind of store a URL names."""
    assert kind_of(url) == kind


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////data/a@b?x.db", "sqlite:////data/a@b?x.db"),
        ("valkey://h:1/2", "valkey://h:1/2"),
        (f"valkey://:{SECRET}@h:1/2", "valkey://h:1/2"),
        (f"valkeys://u:{SECRET}@h?ca=a.pem&key=k.pem", "valkeys://h"),
        (f"valkey+cluster://u:{SECRET}@a:1,b:2", "valkey+cluster://a:1,b:2"),
        (f"valkey+unix:///run/s.sock?db=1&user=u&password={SECRET}", "valkey+unix:///run/s.sock"),
        (f"valkey://u:/{SECRET}@h", "valkey://h"),
        (f"valkey://u:?{SECRET}@h", "valkey://h"),
        (f"valkey://u:@{SECRET}@h", "valkey://h"),
        (f"valkey+unix:///s?password=@{SECRET}", "valkey+unix:///s"),
        (f"postgresql://u:{SECRET}@a:1,b:2/d?schema=x", "postgresql://a:1,b:2/d"),
        (f"postgres:///d?host=/run&user=u&password={SECRET}", "postgres:///d"),
        (f"postgres:///d?password=a@{SECRET}", "postgres:///d"),
        (f"postgresql://u:?{SECRET}@h", "postgresql://"),
        (f"postgresql://u:{SECRET}@h/d?application_name=a@b", "postgresql://"),
        (f"other://u:{SECRET}@h", "other://h"),
        ("http://127.0.0.1:9090", "http://127.0.0.1:9090"),
        ("nothing", "nothing"),
    ],
)
def test_public_url(url: str, shown: str) -> None:
    """Neither user nor password is shown, also when they are not encoded as they should be."""
    assert public_url(url) == shown
    assert has_credentials(url) == (SECRET in url and url.startswith(("valkey", "postgres")))


def test_additions() -> None:
    """Credentials go where the kind of URL has them; options follow each other."""
    assert with_credentials("valkey://h/1", "", "p") == "valkey://:p@h/1"
    assert with_credentials("valkeys+cluster://a,b?ca=x", "u", "p") == "valkeys+cluster://u:p@a,b?ca=x"
    assert with_credentials("valkey+unix:///s", "u", "p") == "valkey+unix:///s?user=u&password=p"
    assert with_option(with_option("valkey://h", "a", "1"), "b", "2") == "valkey://h?a=1&b=2"
