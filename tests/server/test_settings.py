"""Settings: what is read, what beats what, and what is refused by name before a server starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowfabric.backends.postgres.pool import SIZE_MAX
from flowfabric.contract import limits
from flowfabric.contract.errors import Misuse
from flowfabric.contract.ids import PartitionCounts
from flowfabric.contract.states import Durability
from flowfabric.server.settings import PLANNED, RETIRED, VARIABLES, ServerSettings
from flowfabric.server.store_setting import POOL_SIZE_MAX

TOKEN = "first-token-of-sixteen"
OTHER = "other-token-of-sixteen"

load = ServerSettings.load


def refused(environ: dict[str, str], **overrides: Any) -> Misuse:
    """Load settings that must be refused and return the refusal."""
    with pytest.raises(Misuse) as caught:
        load(environ, **overrides)
    return caught.value


# What there is ----------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    """With nothing said, a server listens on loopback, keeps its data in the working directory, and runs timers."""
    settings = load({})
    assert settings.store == "sqlite:///.flowfabric/flowfabric.db"
    assert (settings.host, settings.port) == ("127.0.0.1", 9090)
    assert (settings.tokens, settings.cors_origins, settings.lanes) == ((), (), ())
    assert settings.metrics_address is None and settings.partitions is None and settings.retention_ms is None
    assert settings.stream_operations == limits.STREAM_OPERATIONS_DEFAULT
    assert (settings.engine, settings.log_level, settings.log_format) == (True, "info", "auto")
    assert settings == ServerSettings()


def test_every_variable_acts() -> None:
    """Each variable sets its field."""
    settings = load(
        {
            "FF_STORE": "sqlite:////data/ff.db",
            "FF_LISTEN_ADDR": "[::1]:80",
            "FF_API_TOKEN": TOKEN,
            "FF_METRICS_ADDR": "localhost:9091",
            "FF_CORS_ORIGINS": "https://example.org, http://localhost:3000",
            "FF_LANES": "default, slow",
            "FF_FLOW_PARTITIONS": "8",
            "FF_BUDGET_PARTITIONS": "2",
            "FF_QUOTA_PARTITIONS": "3",
            "FF_MAX_CONCURRENT_STREAM_OPS": "5",
            "FF_RETENTION_MS": "1000",
            "FF_REQUIRE_DURABILITY": "fsync",
            "FF_ENGINE": "off",
            "FF_LOG_LEVEL": "DEBUG",
            "FF_LOG_FORMAT": "json",
        }
    )
    assert settings == ServerSettings(
        store="sqlite:////data/ff.db",
        host="::1",
        port=80,
        tokens=(TOKEN,),
        metrics_address=("localhost", 9091),
        cors_origins=("https://example.org", "http://localhost:3000"),
        lanes=("default", "slow"),
        partitions=PartitionCounts(flow=8, budget=2, quota=3),
        stream_operations=5,
        retention_ms=1000,
        require_durability=Durability.FSYNC,
        engine=False,
        log_level="debug",
        log_format="json",
    )


def test_command_line_beats_environment() -> None:
    """An override that is not None counts; the environment does where there is none."""
    environ = {
        "FF_LISTEN_ADDR": "127.0.0.1:1",
        "FF_LANES": "a",
        "FF_ENGINE": "on",
        "FF_STORE": "sqlite:///a.db",
    }
    settings = load(environ, listen="127.0.0.1:0", lanes=["b", "c"], engine=False, store=None, log_level=None)
    assert (settings.host, settings.port) == ("127.0.0.1", 0)
    assert (settings.lanes, settings.engine, settings.store) == (("b", "c"), False, "sqlite:///a.db")


@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        ({"port": 0}, "port", 0),
        ({"host": "::1"}, "host", "::1"),
        ({"tokens": (TOKEN, OTHER)}, "tokens", (TOKEN, OTHER)),
        ({"tokens": ()}, "tokens", ()),
        ({"metrics_address": ("::1", 9091)}, "metrics_address", ("::1", 9091)),
        ({"metrics_address": "127.0.0.1:9091"}, "metrics_address", ("127.0.0.1", 9091)),
        ({"partitions": PartitionCounts(flow=4)}, "partitions", PartitionCounts(flow=4)),
        ({"require_durability": Durability.MEMORY}, "require_durability", Durability.MEMORY),
        ({"require_durability": "replicated"}, "require_durability", Durability.REPLICATED),
        ({"engine": "off"}, "engine", False),
        ({"retention_ms": 0}, "retention_ms", 0),
        ({"connections": 8}, "connections", 8),
    ],
)
def test_overrides(overrides: dict[str, Any], field: str, value: Any) -> None:
    """An override is a value, or text as a variable would hold it."""
    assert getattr(load({"FF_API_TOKEN": "environment-" + TOKEN}, **overrides), field) == value


def test_unknown_override() -> None:
    """An override that is no setting is refused."""
    assert "tokenz" in str(refused({}, tokenz="x"))
    assert "PartitionCounts" in str(refused({}, partitions=256))


def test_others_variables() -> None:
    """Variables that are not the server's are not looked at."""
    assert load({"PATH": "x", "FLOWFABRIC_URL": "x", "ff_listen_addr": "x", "OFF_X": "x"}) == ServerSettings()


# Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(RETIRED))
def test_retired_variables(name: str) -> None:
    """A published variable that no longer acts is refused by name with the reason, whatever its value."""
    for value in ("1", ""):
        error = refused({name: value})
        assert name in str(error) and RETIRED[name] in str(error)


@pytest.mark.parametrize("name", sorted(PLANNED))
def test_planned_variables(name: str) -> None:
    """A variable of something that does not exist yet is refused as planned."""
    error = refused({name: "1"})
    assert name in str(error) and "planned" in str(error) and PLANNED[name] in str(error)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("FF_LISTEN_ADDRESS", "FF_LISTEN_ADDR"),
        ("FF_API_TOKENS", "FF_API_TOKEN"),
        ("FF_RETENTION", "FF_RETENTION_MS"),
        ("FF_LANE", "FF_LANES"),
    ],
)
def test_unknown_variables(name: str, near: str) -> None:
    """A misspelt variable is refused with the nearest name there is."""
    error = refused({name: "x"})
    assert name in str(error) and f"did you mean {near}?" in str(error)


def test_far_from_any_variable() -> None:
    """A name like no other is refused with all names there are."""
    assert all(name in str(refused({"FF_ZZZZZZZZ": "x"})) for name in VARIABLES)


def test_tables_are_apart() -> None:
    """A variable acts, is retired or is planned, never two of them; each that acts names a setting."""
    assert not VARIABLES.keys() & RETIRED.keys()
    assert not VARIABLES.keys() & PLANNED.keys()
    assert not RETIRED.keys() & PLANNED.keys()
    fields = {*ServerSettings.__struct_fields__, "listen", "token_file"}
    assert {variable.field for variable in VARIABLES.values()} <= fields


@pytest.mark.parametrize(
    "name", sorted(VARIABLES.keys() - {"FF_API_TOKEN", "FF_API_TOKEN_FILE", "FF_BACKEND"})
)
@pytest.mark.parametrize("text", ["", "  "])
def test_empty_variables(name: str, text: str) -> None:
    """A variable that is set but empty is refused."""
    assert name in str(refused({name: text}))


def test_empty_is_unset() -> None:
    """An empty token or backend is the same as none."""
    assert load({"FF_API_TOKEN": "", "FF_API_TOKEN_FILE": "", "FF_BACKEND": ""}) == ServerSettings()


# The store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"FF_SQLITE_PATH": "data/ff.db"}, "sqlite:///data/ff.db"),
        ({"FF_SQLITE_PATH": "/data/ff.db"}, "sqlite:////data/ff.db"),
        ({"FF_SQLITE_PATH": ":memory:"}, "sqlite:///:memory:"),
        ({"FF_SQLITE_PATH": "what? 100%.db"}, "sqlite:///what%3F%20100%25.db"),
        ({"FF_BACKEND": "SQLite", "FF_SQLITE_PATH": "a.db"}, "sqlite:///a.db"),
        ({"FF_BACKEND": "sqlite", "FF_STORE": "sqlite:///b.db"}, "sqlite:///b.db"),
        ({"FF_BACKEND": "Valkey"}, "valkey://localhost:6379/0"),
        ({"FF_BACKEND": "valkey", "FF_HOST": "v", "FF_PORT": "7"}, "valkey://v:7/0"),
        ({"FF_BACKEND": "valkey", "FF_HOST": "::1", "FF_DATABASE": "3"}, "valkey://[::1]:6379/3"),
        ({"FF_BACKEND": "valkey", "FF_TLS": "1", "FF_CLUSTER": "0"}, "valkeys://localhost:6379/0"),
        (
            {"FF_BACKEND": "valkey", "FF_TLS": "true", "FF_TLS_CA": "/etc/a b.pem"},
            "valkeys://localhost:6379/0?ca=/etc/a%20b.pem",
        ),
        ({"FF_BACKEND": "valkey", "FF_CLUSTER": "true"}, "valkey+cluster://localhost:6379"),
        (
            {"FF_BACKEND": "valkey", "FF_CLUSTER": "1", "FF_TLS": "1", "FF_HOST": "a, [::2]", "FF_PORT": "1"},
            "valkeys+cluster://a:1,[::2]:1",
        ),
        ({"FF_STORE": "valkey+unix:///run/v.sock"}, "valkey+unix:///run/v.sock"),
        (
            {"FF_BACKEND": "valkey", "FF_USER": "ff", "FF_PASSWORD": "p@/?: %"},
            "valkey://ff:p%40%2F%3F%3A%20%25@localhost:6379/0",
        ),
        ({"FF_STORE": "valkey://h/1", "FF_PASSWORD": "secret"}, "valkey://:secret@h/1"),
        (
            {"FF_STORE": "valkey+unix:///v.sock?db=1", "FF_USER": "u", "FF_PASSWORD": "p&"},
            "valkey+unix:///v.sock?db=1&user=u&password=p%26",
        ),
        (
            {"FF_STORE": "valkey://h/1", "FF_REQUIRE_DURABILITY": "replicated"},
            "valkey://h/1?durability=replicated",
        ),
        (
            {"FF_STORE": "valkeys://h?ca=c", "FF_REQUIRE_DURABILITY": "replicated"},
            "valkeys://h?ca=c&durability=replicated",
        ),
        (
            {"FF_STORE": "valkey://h?durability=memory", "FF_REQUIRE_DURABILITY": "replicated"},
            "valkey://h?durability=memory",
        ),
        ({"FF_STORE": "valkey://h", "FF_REQUIRE_DURABILITY": "fsync"}, "valkey://h"),
        ({"FF_BACKEND": "Postgres", "FF_POSTGRES_URL": "postgresql://h/d"}, "postgresql://h/d"),
        ({"FF_STORE": "postgres://u:p@a:1,b:2/d?schema=x"}, "postgres://u:p@a:1,b:2/d?schema=x"),
        ({"FF_STORE": "postgresql://h/d", "FF_POSTGRES_POOL_SIZE": "4"}, "postgresql://h/d?pool_size=4"),
        (
            {"FF_STORE": "postgresql://h/d?schema=x", "FF_POSTGRES_POOL_SIZE": "1000"},
            "postgresql://h/d?schema=x&pool_size=1000",
        ),
        ({"FF_STORE": "postgresql://h/d", "FF_USER": "u", "FF_PASSWORD": "p@"}, "postgresql://u:p%40@h/d"),
        ({"FF_STORE": "postgresql://u%40@h/d?a=b", "FF_PASSWORD": "p/"}, "postgresql://u%40:p%2F@h/d?a=b"),
        ({"FF_STORE": "postgresql://h/d", "FF_REQUIRE_DURABILITY": "replicated"}, "postgresql://h/d"),
    ],
)
def test_store(environ: dict[str, str], url: str) -> None:
    """The store is named by its URL, or by its kind and its file or place; who asks may be said apart."""
    assert load(environ).store == url


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"FF_STORE": "ff.db"}, "FF_STORE"),
        ({"FF_STORE": "redis://localhost"}, "Valkey"),
        ({"FF_STORE": "sqlite:///a.db", "FF_SQLITE_PATH": "b.db"}, "FF_SQLITE_PATH"),
        ({"FF_BACKEND": "valkey", "FF_STORE": "sqlite:///a.db"}, "FF_BACKEND"),
        ({"FF_BACKEND": "sqlite", "FF_STORE": "valkey+cluster://a"}, "FF_BACKEND"),
        ({"FF_BACKEND": "valkey", "FF_SQLITE_PATH": "a.db"}, "FF_SQLITE_PATH"),
        ({"FF_BACKEND": "valkey", "FF_HOST": "a,b"}, "FF_CLUSTER"),
        ({"FF_BACKEND": "valkey", "FF_HOST": "a,"}, "FF_HOST"),
        ({"FF_BACKEND": "valkey", "FF_PORT": "0"}, "FF_PORT"),
        ({"FF_BACKEND": "valkey", "FF_TLS": "maybe"}, "FF_TLS"),
        ({"FF_BACKEND": "valkey", "FF_TLS_CA": "a.pem"}, "FF_TLS_CA"),
        ({"FF_BACKEND": "valkey", "FF_CLUSTER": "1", "FF_DATABASE": "1"}, "FF_DATABASE"),
        ({"FF_BACKEND": "valkey", "FF_USER": "u"}, "FF_PASSWORD"),
        ({"FF_BACKEND": "valkey", "FF_PASSWORD": "p", "FF_PASSWORD_FILE": "p"}, "FF_PASSWORD_FILE"),
        ({"FF_STORE": "valkey://h", "FF_HOST": "h"}, "FF_HOST"),
        ({"FF_STORE": "valkey://:p@h", "FF_PASSWORD": "p"}, "FF_PASSWORD"),
        ({"FF_STORE": "valkey+unix:///s?password=p", "FF_PASSWORD": "p"}, "FF_PASSWORD"),
        ({"FF_STORE": "sqlite:///a.db", "FF_PASSWORD": "p"}, "FF_PASSWORD"),
        ({"FF_HOST": "h"}, "FF_BACKEND=valkey"),
        ({"FF_PASSWORD": "p"}, "FF_BACKEND=valkey"),
        ({"FF_BACKEND": "postgres"}, "FF_POSTGRES_URL"),
        ({"FF_BACKEND": "postgres", "FF_POSTGRES_URL": "valkey://h"}, "postgresql://"),
        (
            {"FF_BACKEND": "postgres", "FF_POSTGRES_URL": "postgresql://h", "FF_HOST": "h"},
            "FF_BACKEND=valkey",
        ),
        (
            {"FF_BACKEND": "postgres", "FF_POSTGRES_URL": "postgresql://h", "FF_SQLITE_PATH": "a"},
            "FF_SQLITE_PATH",
        ),
        ({"FF_POSTGRES_URL": "postgresql://h/d"}, "FF_BACKEND=postgres"),
        ({"FF_STORE": "postgresql://h/d", "FF_POSTGRES_URL": "postgresql://h/d"}, "both name"),
        ({"FF_BACKEND": "valkey", "FF_STORE": "postgresql://h/d"}, "FF_BACKEND"),
        ({"FF_STORE": "postgresql://h/d", "FF_POSTGRES_POOL_SIZE": "0"}, "FF_POSTGRES_POOL_SIZE"),
        ({"FF_STORE": "postgresql://h/d", "FF_POSTGRES_POOL_SIZE": "1001"}, "FF_POSTGRES_POOL_SIZE"),
        ({"FF_STORE": "postgresql://h/d?pool_size=3", "FF_POSTGRES_POOL_SIZE": "3"}, "both say"),
        ({"FF_STORE": "sqlite:///a.db", "FF_POSTGRES_POOL_SIZE": "3"}, "FF_BACKEND=postgres"),
        ({"FF_STORE": "valkey://h", "FF_POSTGRES_POOL_SIZE": "3"}, "FF_BACKEND=postgres"),
        ({"FF_STORE": "postgresql://u@h/d", "FF_USER": "v", "FF_PASSWORD": "p"}, "both say who asks"),
        ({"FF_STORE": "postgresql://u:q@h/d", "FF_PASSWORD": "p"}, "both say who asks"),
        ({"FF_STORE": "postgresql:///d?password=q", "FF_PASSWORD": "p"}, "both say who asks"),
        ({"FF_STORE": "postgresql://h/d", "FF_USER": "u"}, "FF_PASSWORD"),
        ({"FF_BACKEND": "mysql"}, "FF_BACKEND"),
        ({"FF_SQLITE_PATH": "data/"}, "FF_SQLITE_PATH"),
    ],
)
def test_no_store(environ: dict[str, str], says: str) -> None:
    """A store that cannot be, or is named twice, is refused; so is a variable that would not act."""
    assert says in str(refused(environ)) + str(refused(environ).details)


def test_a_password_for_the_store_on_the_command_line() -> None:
    """The store of the command line beats the environment's; who asks, which no command line shows, still counts."""
    environ = {"FF_BACKEND": "valkey", "FF_HOST": "h", "FF_USER": "u", "FF_PASSWORD": "p"}
    assert load(environ, store="valkey+cluster://a,b").store == "valkey+cluster://u:p@a,b"
    assert load(environ, store="sqlite:///a.db").store == "sqlite:///a.db"
    assert load(environ, store="postgres://h/d").store == "postgres://u:p@h/d"
    assert load({"FF_POSTGRES_POOL_SIZE": "2"}, store="postgres://h/d").store == "postgres://h/d?pool_size=2"


def test_the_pool_is_as_large_as_the_store_lets_it_be() -> None:
    """What the variable may say, the store takes."""
    assert POOL_SIZE_MAX == SIZE_MAX


def test_password_from_a_file(tmp_path: Path) -> None:
    """The password may be in a file that others cannot read: one line."""
    file = tmp_path / "password"
    file.write_text("päss word\n")
    file.chmod(0o644)
    environ = {"FF_BACKEND": "valkey", "FF_PASSWORD_FILE": str(file)}
    assert "chmod 600" in str(refused(environ).details)
    file.chmod(0o600)
    assert load(environ).store == "valkey://:p%C3%A4ss%20word@localhost:6379/0"
    file.write_text("one\ntwo\n")
    assert "one line" in str(refused(environ))
    file.write_text("\n")
    assert "one line" in str(refused(environ))


@pytest.mark.parametrize(
    "environ",
    [
        {"FF_STORE": "valkey://user:s3cret@h:1/0?durability=fsync"},
        {"FF_STORE": "valkey+unix:///s?user=user&password=s3cret"},
        {"FF_BACKEND": "valkey", "FF_PASSWORD": "s3cret"},
        {"FF_STORE": "postgresql://u:s3cret@h/d"},
        {"FF_BACKEND": "postgres", "FF_POSTGRES_URL": "postgresql:///d?user=u&password=s3cret"},
    ],
)
def test_no_password_is_shown(environ: dict[str, str]) -> None:
    """Neither the settings' representation nor a refusal shows the password of the store."""
    assert "s3cret" in load(environ).store and "s3cret" not in repr(load(environ))
    said = refused({**environ, "FF_SQLITE_PATH": "a.db", "FF_PASSWORD": "s3cret"})
    assert "s3cret" not in str(said) + repr(said.details)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("FF_FLOW_PARTITIONS", "0"),
        ("FF_FLOW_PARTITIONS", "65536"),
        ("FF_BUDGET_PARTITIONS", "-1"),
        ("FF_QUOTA_PARTITIONS", "many"),
        ("FF_MAX_CONCURRENT_STREAM_OPS", "0"),
        ("FF_MAX_CONCURRENT_STREAM_OPS", "1.5"),
        ("FF_MAX_CONCURRENT_STREAM_OPS", "٣"),
        ("FF_RETENTION_MS", "-1"),
        ("FF_RETENTION_MS", str(limits.DURATION_MAX_MS + 1)),
        ("FF_RETENTION_MS", "1e9"),
        ("FF_REQUIRE_DURABILITY", "disk"),
        ("FF_ENGINE", "maybe"),
        ("FF_LOG_LEVEL", "trace"),
        ("FF_LOG_FORMAT", "xml"),
        ("FF_LANES", "a,,b"),
        ("FF_LANES", "a,a"),
        ("FF_LANES", "a lane"),
        ("FF_LANES", "x" * 65),
    ],
)
def test_malformed_values(name: str, text: str) -> None:
    """A value that cannot be is refused with the variable's name."""
    assert name in str(refused({name: text}))


def test_bounds_are_included() -> None:
    """The largest values there are, are taken."""
    settings = load({"FF_FLOW_PARTITIONS": "65535", "FF_RETENTION_MS": str(limits.DURATION_MAX_MS)})
    assert settings.partitions == PartitionCounts(flow=65_535)
    assert settings.retention_ms == limits.DURATION_MAX_MS


# Addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "9090", ":9090", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1", "::1:9090",
        "[::1]", "[::1:9090", "[127.0.0.1]:9090", "[]:9090", "1.2.3:9090", "256.0.0.1:9090", "a b:9090", "a/b:9090",
        "http://localhost:9090",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["FF_LISTEN_ADDR", "FF_METRICS_ADDR"])
def test_malformed_addresses(name: str, text: str) -> None:
    """What is not an address and a port is refused."""
    assert name in str(refused({name: text, "FF_API_TOKEN": TOKEN}))


@pytest.mark.parametrize("text", ["0.0.0.0:9090", "[::]:9090", "10.0.0.1:9090", "example.org:9090"])
def test_public_address(text: str) -> None:
    """An address that other machines can reach needs a token, from wherever the address comes."""
    for error in (refused({"FF_LISTEN_ADDR": text}), refused({}, listen=text)):
        assert "FF_API_TOKEN" in str(error)
    assert load({"FF_LISTEN_ADDR": text, "FF_API_TOKEN": TOKEN}).port == 9090


@pytest.mark.parametrize("text", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1", "LOCALHOST:1"])
def test_loopback_address(text: str) -> None:
    """An address that only this machine can reach needs no token."""
    assert load({"FF_LISTEN_ADDR": text}).port == 1


def test_metrics_address() -> None:
    """Metrics without a token are served on loopback only, and not on the server's own port."""
    assert "loopback" in str(refused({"FF_METRICS_ADDR": "0.0.0.0:9091", "FF_API_TOKEN": TOKEN}))
    assert "FF_METRICS_ADDR" in str(refused({"FF_METRICS_ADDR": "127.0.0.1:9090"}))


# Tokens -----------------------------------------------------------------------------------------------------------


def test_several_tokens() -> None:
    """Tokens are separated by commas, so that a new one can live beside the old one."""
    assert load({"FF_API_TOKEN": f"{TOKEN}, {OTHER}"}).tokens == (TOKEN, OTHER)


@pytest.mark.parametrize(
    "text",
    ["x" * 15, "x" * 4097, "sixteen with spaces", "sixteen-ünicode-x", f"{TOKEN},short", f"{TOKEN},,{OTHER}",
     f"{TOKEN},{TOKEN}", f"{TOKEN}\x7f", ",".join(f"{number:016}" for number in range(17))],
)  # fmt: skip
def test_refused_tokens(text: str) -> None:
    """A token too short, too long, not printable ASCII, or given twice is refused, and never quoted."""
    error = refused({"FF_API_TOKEN": text})
    assert "FF_API_TOKEN" in str(error)
    said = f"{error} {error.details}"
    assert not any(token.strip() and token.strip() in said for token in text.split(","))


def test_shortest_token() -> None:
    """Sixteen characters are enough, and every printable one but the comma may be among them."""
    assert load({"FF_API_TOKEN": "!#$%&'()*+-./:;<"}).tokens == ("!#$%&'()*+-./:;<",)


def test_tokens_are_not_shown() -> None:
    """No representation of the settings shows a token."""
    settings = load({"FF_API_TOKEN": TOKEN})
    assert TOKEN not in repr(settings)
    assert TOKEN not in str(settings)
    assert TOKEN not in str(settings.__rich_repr__())


def token_file(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    """Write a token file and return its path."""
    path = tmp_path / "token"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return str(path)


def test_token_file(tmp_path: Path) -> None:
    """A token file holds tokens one a line or separated by commas."""
    path = token_file(tmp_path, f"{TOKEN}\n\n{OTHER}\r\n")
    assert load({"FF_API_TOKEN_FILE": path}).tokens == (TOKEN, OTHER)
    assert load({}, token_file=path).tokens == (TOKEN, OTHER)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o644, 0o666])
def test_open_token_file(tmp_path: Path, mode: int) -> None:
    """A token file that everybody may open is refused."""
    error = refused({"FF_API_TOKEN_FILE": token_file(tmp_path, TOKEN, mode)})
    assert "FF_API_TOKEN_FILE" in str(error) and "chmod 600" in str(error.details["next"])
    assert load({"FF_API_TOKEN_FILE": token_file(tmp_path, TOKEN, 0o640)}).tokens == (TOKEN,)


@pytest.mark.parametrize("text", ["", "\n \n", "short", "sixteen-ünicode-x", "x" * 70_000])
def test_refused_token_file(tmp_path: Path, text: str) -> None:
    """A token file without a token, or with a malformed one, is refused."""
    assert "FF_API_TOKEN_FILE" in str(refused({"FF_API_TOKEN_FILE": token_file(tmp_path, text)}))


def test_missing_token_file(tmp_path: Path) -> None:
    """A token file that is not there, or is no file, is refused."""
    assert "FF_API_TOKEN_FILE" in str(refused({"FF_API_TOKEN_FILE": str(tmp_path / "none")}))
    assert "FF_API_TOKEN_FILE" in str(refused({"FF_API_TOKEN_FILE": str(tmp_path)}))
    assert "token_file" in str(refused({}, token_file="a\x00b"))


def test_tokens_from_two_places(tmp_path: Path) -> None:
    """Tokens come from a variable or from a file, not from both; the command line replaces either."""
    environ = {"FF_API_TOKEN": TOKEN, "FF_API_TOKEN_FILE": token_file(tmp_path, OTHER)}
    assert "FF_API_TOKEN_FILE" in str(refused(environ))
    assert load({"FF_API_TOKEN": TOKEN}, token_file=environ["FF_API_TOKEN_FILE"]).tokens == (OTHER,)


# Origins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["*", "http://localhost:3000", "https://[::1]:8443", "tauri://localhost"])
def test_origins(text: str) -> None:
    """An origin is a scheme, a host and maybe a port; * is every origin."""
    assert load({"FF_CORS_ORIGINS": text}).cors_origins == (text,)


@pytest.mark.parametrize(
    "text",
    ["example.org", "https://example.org/", "https://example.org/app", "https://Example.org", "null", "https://",
     "https://a.org:443", "http://a.org:80", "https://a.org https://b.org", "https://a.org,*", "https://*.a.org"],
)  # fmt: skip
def test_refused_origins(text: str) -> None:
    """What a browser would never send as an origin is refused, so is * beside others.

    Acceptance: invalid-origins-refuse-to-start
    """
    assert "FF_CORS_ORIGINS" in str(refused({"FF_CORS_ORIGINS": text}))


def test_every_origin_with_a_token() -> None:
    """Every origin and a token together are refused."""
    assert "FF_CORS_ORIGINS" in str(refused({"FF_CORS_ORIGINS": "*", "FF_API_TOKEN": TOKEN}))
