"""Settings as platforms hand them over: what is read, what is ignored, and what is refused in one line."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner

import engine
from engine.cli import main
from engine.errors import SettingsError
from engine.settings import Settings, describe_settings, read_settings
from engine.tests.certificates import Authority

TOKEN = "0123456789abcdef"
LONG = "a" * 70


def read(**variables: str) -> Settings:
    return read_settings({f"FLASHGRID_{name}": value for name, value in variables.items()})


def refuse(**variables: str) -> str:
    """The line that refuses these variables."""
    with pytest.raises(SettingsError) as caught:
        read(**variables)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", [row[0].removeprefix("FLASHGRID_") for row in describe_settings()])
@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_empty_is_unset_for_every_setting(name: str, empty: str) -> None:
    assert read(**{name: empty}) == Settings()


def test_copies_are_awaited_for_less_than_the_answer() -> None:
    assert read(GATE_COPIES_MS="2000").gate_copies == 1, "nothing is awaited"
    assert "GATE_COPIES_MS: must be less" in refuse(GATE_COPIES="2", GATE_COPIES_MS="2000")
    assert "GATE_COPIES_MS: must be less" in refuse(GATE_COPIES="2", LOOK_TIMEOUT_MS="500")


@pytest.mark.parametrize("level", ["INFO", "Info", " info"])
def test_a_log_level_may_be_written_in_capitals(level: str) -> None:
    assert read(LOG_LEVEL=level).log_level == "info"


def test_an_empty_override_is_unset_too() -> None:
    assert read_settings({"FLASHGRID_HOST": "::1"}, host="").host == "::1"


def test_whitespace_around_a_value_is_cut() -> None:
    settings = read(PORT=" 81\n", REDIS_URL="redis://h:1/0\r\n", ADMIN_TOKEN=f"\t{TOKEN}\n")
    assert (settings.port, settings.redis_url, settings.admin_token) == (81, "redis://h:1/0", TOKEN)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ADMIN_TOKEN", TOKEN), ("REDIS_URL", "redis://h:1/0"), ("AMQP_URL", "amqp://h/"),
        ("POSTGRES_URL", "postgresql://h/d"),
    ],
)  # fmt: skip
def test_secrets_may_lie_in_files(tmp_path: Path, name: str, value: str) -> None:
    file = tmp_path / "secret"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # the last of them as PowerShell writes it
        file.write_text(f"{value}\r\n", encoding=encoding)
        assert getattr(read(**{f"{name}_FILE": str(file), name: ""}), name.lower()) == value
    assert f"FLASHGRID_{name}_FILE" in refuse(**{f"{name}_FILE": str(file), name: value})
    file.write_text(f'"{value}"\n')
    assert "in quotes" in refuse(**{f"{name}_FILE": str(file)})
    file.write_text("\n")
    assert "is empty" in refuse(**{f"{name}_FILE": str(file)})
    file.write_bytes(b"\xff\xfe\x00")
    assert "no text" in refuse(**{f"{name}_FILE": str(file)})
    assert "No such file" in refuse(**{f"{name}_FILE": str(tmp_path / "lost")})
    assert "directory" in refuse(**{f"{name}_FILE": str(tmp_path)})


OF_PLATFORMS = {
    "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80", "PORT": "tcp://10.0.0.1:80",
    "PORT_80_TCP": "tcp://10.0.0.1:80", "PORT_80_TCP_PROTO": "tcp", "PORT_80_TCP_PORT": "80",
    "PORT_80_TCP_ADDR": "10.0.0.1", "PORT_53_UDP": "udp://[fd00::1]:53",
}  # fmt: skip


@pytest.mark.parametrize("service", ["", "REDIS_", "GATE_SHARDS_", "V2_"])
def test_what_kubernetes_tells_of_its_services_is_no_setting(service: str) -> None:
    assert read(**{service + name: value for name, value in OF_PLATFORMS.items()}) == Settings()


def test_what_docker_tells_of_linked_containers_is_no_setting() -> None:
    assert (
        read(REDIS_NAME="/shop/flashgrid_redis", REDIS_ENV_REDIS_VERSION="7", PORT_80_TCP_START="x")
        == Settings()
    )


def test_a_port_is_still_a_port() -> None:
    assert read(PORT="81", SERVICE_HOST="10.0.0.1").port == 81
    assert "FLASHGRID_PORT" in refuse(PORT="http://10.0.0.1:80")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("GATE_BATHC", "GATE_BATCH"), ("REDIS", "REDIS_URL"), ("REDIS_URI", "REDIS_URL"),
        ("TOKEN", "ADMIN_TOKEN"), ("ADMIN_TOKEN_FIEL", "ADMIN_TOKEN_FILE"),
        ("POSTGRESQL_URL", "POSTGRES_URL"), ("redis_ulr", "REDIS_URL"),
    ],
)  # fmt: skip
def test_a_typo_is_named_with_what_was_likely_meant(typo: str, meant: str) -> None:
    assert f"did you mean FLASHGRID_{meant}?" in refuse(**{typo: "1"})
    assert f"did you mean FLASHGRID_{meant}?" in refuse(**{typo: ""})


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ADMIN_TOKEN": "fifteen-letters"}, "length >= 16"),
        ({"ADMIN_TOKEN": "sixteen letters!"}, "visible ASCII"),
        ({"ADMIN_TOKEN": "é" * 16}, "visible ASCII"),
        ({"DRAIN_S": "inf"}, "finite"),
        ({"KEEPALIVE_S": "nan"}, "KEEPALIVE_S"),
        ({"DEV": "yes"}, "Expected true or false, got 'yes'"),
        ({"PORT": "8080/tcp"}, "Expected `int`, got '8080/tcp'"),
        # https://github.com/theskumar/python-dotenv/issues/545
        ({"ADMIN_TOKEN": f'"{TOKEN}"'}, "in quotes"),
        ({"REDIS_URL": "'redis://h:1/0'"}, "in quotes"),
        ({"DATA_DIR": '"data"'}, "in quotes"),
        ({"OPERATIONS_BIND": "9090"}, "host:port"),
        ({"OPERATIONS_BIND": "http://h:1"}, "host:port"),
        ({"REDIS_URL": "localhost:6379"}, "redis://host:6379/0"),
        ({"REDIS_URL": "http://h:6379"}, "redis://host:6379/0"),
        ({"REDIS_URL": "redis://"}, "redis://host:6379/0"),
        ({"REDIS_URL": "redis://h:port"}, "percent-encoded"),
        ({"REDIS_URL": "redis://:se/cret@h"}, "percent-encoded"),
        ({"REDIS_URL": "redis://:se@cret@h"}, "percent-encoded"),
        ({"REDIS_URL": "redis://:se#cret@h"}, "percent-encoded"),
        ({"REDIS_URL": "redis://h/main"}, "by a number"),
        ({"REDIS_URL": "redis://h?db=main"}, "by a number"),
        ({"REDIS_URL": "redis://h?decode_responses=true"}, "option decode_responses would change"),
        ({"REDIS_URL": "redis://h?socket_timeout=1"}, "option socket_timeout would change"),
        ({"REDIS_URL": "redis://h?colour=red"}, "option colour is unknown"),
        ({"REDIS_URL": "redis+sentinel://h"}, "host h has no port"),
        ({"REDIS_URL": "redis+sentinel://h:1,i:2"}, "lacks the name"),
        ({"REDIS_URL": "redis+sentinel://h:1/a/b"}, "lacks the name"),
        ({"REDIS_URL": "redis+sentinel://h:1/gate?db=x"}, "by a number"),
        ({"REDIS_URL": "redis+cluster://h:1,i,j:3"}, "host i has no port"),
        ({"REDIS_URL": "redis+cluster://h:1,,j:3"}, "redis+cluster://host:6379"),
        ({"REDIS_URL": "redis+cluster://h:1,i:port"}, "redis+cluster://host:6379"),
        ({"REDIS_URL": "redis+cluster://h:1/2"}, "leave /2 out"),
        ({"REDIS_URL": "redis+cluster://h:1?db=2"}, "leave /2 out"),
        ({"REDIS_URL": "redis+cluster://:se@cret@h:1"}, "percent-encoded"),
        ({"REDIS_URL": "redis+cluster://h:1?colour=red"}, "option colour is unknown"),
        ({"REDIS_URL": "redis+ring://h:1"}, "redis+cluster://"),
        ({"REDIS_URL": "redis://h:1,i:2"}, "several hosts"),
        # https://github.com/ohcnetwork/care/pull/2964
        ({"REDIS_URL": "rediss://h?ssl_cert_reqs=CERT_NONE"}, "must be none, optional or required"),
        ({"REDIS_URL": "rediss://h?ssl_ca_certs=/nowhere/ca"}, "ssl_ca_certs names /nowhere/ca"),
        ({"AMQP_URL": "amqps://h?cafile=/nowhere/ca"}, "cafile names /nowhere/ca"),
        ({"POSTGRES_URL": "postgresql://h/d?sslrootcert=/nowhere/ca"}, "sslrootcert names /nowhere/ca"),
        ({"REDIS_URL": "unix://"}, "unix:///path"),
        ({"REDIS_URL": "unix://run/redis.sock"}, "unix:///path"),
        ({"REDIS_URL": "redis://h/1?db=2"}, "option db contradicts what"),
        # The client library would connect to port 5432.
        ({"POSTGRES_URL": "postgresql://h/d?port=5433"}, "option port contradicts what"),
        ({"POSTGRES_URL": "postgresql://h1,h2/d?host=h3"}, "option host contradicts what"),
        ({"POSTGRES_URL": "postgresql://u:secret@h/d?user=w"}, "option user contradicts what"),
        ({"POSTGRES_URL": "postgresql://u:secret@h/d?password=secrets"}, "option password contradicts what"),
        ({"POSTGRES_URL": "postgresql://h/d?dbname=e"}, "option dbname contradicts what"),
        ({"AMQP_URL": "h:5672"}, "amqp://"),
        ({"AMQP_URL": "amqp:///vhost"}, "amqp://"),
        ({"AMQP_URL": "amqp://h?heartbeat=0"}, "heartbeat"),
        ({"AMQP_URL": "amqp://h?heartbeat=600"}, "heartbeat"),
        ({"AMQP_URL": "amqp://h?channel_max=1"}, "option channel_max would change"),
        ({"POSTGRES_URL": "host=h dbname=d"}, "postgresql://"),
        ({"POSTGRES_URL": "postgresql+asyncpg://h/d"}, "postgresql://"),
        ({"POSTGRES_URL": "jdbc:postgresql://h/d"}, "postgresql://"),
        ({"POSTGRES_URL": "postgresql://h/d?synchronous_commit=off"}, "synchronous_commit would change"),
        ({"POSTGRES_URL": "postgresql://h/d?options=-c%20synchronous_commit%3Doff"}, "synchronous_commit"),
        ({"POSTGRES_URL": "postgresql://h/d?options=--synchronous-commit%3Doff"}, "synchronous_commit"),
        ({"POSTGRES_URL": "postgresql://h/d?options=-cstatement_timeout%3D5"}, "statement_timeout"),
        ({"POSTGRES_URL": "postgresql://h/d?channel_binding=require"}, "channel_binding"),
        ({"POSTGRES_URL": "postgresql://h/d?target_session_attrs=standby"}, "target_session_attrs"),
        ({"POSTGRES_URL": "postgresql://h1,,h2/d"}, "several hosts"),
        ({"POSTGRES_URL": "postgresql://h1,h2:x/d"}, "several hosts"),
        ({"POSTGRES_URL": "postgresql://h1,h2:70000/d"}, "several hosts"),
        ({"POSTGRES_URL": "postgresql://h1:1,h2,h1:1/d"}, "a host twice"),
        ({"POSTGRES_URL": "postgresql:///d?host=h1,h2&port=1,2,3"}, "2 hosts and 3 ports"),
        ({"POSTGRES_URL": "postgresql:///d?host=h1,h2&port=1,x"}, "x, which is no port"),
        ({"POSTGRES_URL": "postgresql:///d?host=h&port=99999"}, "99999, which is no port"),
        ({"POSTGRES_URL": "postgresql:///d?host=h&port=1,2"}, "1 hosts and 2 ports"),
        ({"POSTGRES_URL": f"postgresql:///d?host=h,{LONG}"}, "more than 63 letters"),
        ({"POSTGRES_URL": f"postgresql://{LONG}/d"}, "more than 63 letters"),
        ({"POSTGRES_URL": "postgresql://u:%00secret@h/d"}, "percent-encoded"),
        ({"POSTGRES_URL": "postgresql://h/d?sslrootcert=/"}, "sslrootcert names /, which can't be read"),
        ({"REDIS_URL": "redis://h?ssl_cert_reqs=none"}, "is for TLS: write rediss://"),
        ({"REDIS_URL": "redis+sentinel://h:1/gate?ssl_check_hostname=true"}, "is for TLS"),
        ({"REDIS_URL": "unix:///run/redis.sock?ssl_cert_reqs=none"}, "is for TLS"),
        ({"REDIS_URL": "rediss://h?ssl_check_hostname=maybe"}, "true or false"),
        ({"REDIS_URL": "redis://h?health_check_interval=abc"}, "a number of seconds"),
        ({"REDIS_URL": "redis://h?client_name=the%20till"}, "without spaces"),
        ({"REDIS_URL": f"redis+cluster://h:1,{LONG}:2"}, "more than 63 letters"),
        ({"REDIS_URL": "redis://h..i"}, "an empty label"),
        ({"REDIS_URL": "redis://h:0"}, "redis://host:6379/0"),
        ({"REDIS_URL": "redis://:secret\udcff@h"}, "percent-encoded"),
        ({"AMQP_URL": f"amqp://{LONG}"}, "more than 63 letters"),
        ({"AMQP_URL": "amqp://h?cafile=/ca"}, "is for TLS: write amqps://"),
        # Any other value would turn the verification off.
        ({"AMQP_URL": "amqps://h?no_verify_ssl=false"}, "0 or 1"),
        ({"AMQP_URL": "amqp://h?management_port=http"}, "a port"),
        ({"AMQP_URL": "amqp://u:secret@h1,/shop"}, "several hosts"),
        ({"AMQP_URL": "amqp://u:secret@h1,u:secret@h2/shop"}, "percent-encoded"),
        ({"POSTGRES_URL": "postgresql://h/d?sslmode=require&sslmode=disable"}, "twice"),
        ({"POSTGRES_URL": "postgresql://h/d?sslmode"}, "percent-encoded"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line_that_shows_what_is_expected_and_no_secret(
    variables: dict[str, str], said: str
) -> None:
    line = refuse(**variables)
    assert said in line
    (name,) = variables
    assert line.startswith(f"FLASHGRID_{name}")
    assert "cret" not in line.replace("secret", "")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h", "rediss://user:pass@h:6380/3?ssl_cert_reqs=none", "unix:///run/redis.sock?db=2",
        "redis://[::1]:6379/0", "redis://:p%40ss@h:1?client_name=till",
        "redis+cluster://h:1,[::1]:2", "rediss+cluster://user:p%40ss@h:1,i:2?ssl_cert_reqs=none",
        "redis+sentinel://h:1,i:2,j:3/gate", "rediss+sentinel://:word@h:1/gate-1?db=2",
    ],
)  # fmt: skip
def test_what_redis_urls_usually_look_like_is_taken(url: str) -> None:
    assert read(REDIS_URL=url).redis_url == url


@pytest.mark.parametrize(
    "url",
    [
        "amqp://u:p@h:5672/shop?heartbeat=30",
        "amqps://h",
        "amqp://h//",
        "amqp://h/%2f",
        "amqp://[::1]/",
        "amqp://u:p@h1,h2:5673,[::1]:5674/shop",
        "amqps://h1,h2?management_port=443",
        "amqp://u:a,b@h/",
    ],
)
def test_what_amqp_urls_usually_look_like_is_taken(url: str) -> None:
    assert read(AMQP_URL=url).amqp_url == url


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("postgres://u:p@h:5432/d?sslmode=require", None),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=%2Frun%2Fpostgresql"),
        ("postgresql://h/d?application_name=the%20till&connect_timeout=10", "postgresql://h/d?application_name=the%20till"),
        ("postgresql://h/d?keepalives=1&keepalives_idle=30&channel_binding=prefer", "postgresql://h/d"),
        ("postgresql://h/d?options=-c%20search_path%3Dshop", None),
        ("postgresql://h1:1,h2:2/d?target_session_attrs=read-write", None),
        ("postgresql://u:p@h1,h2:5433,[::1]:5434/d", None),
        ("postgresql:///d?host=h1,/run&port=1,2&sslmode=require", "postgresql://h1:1,%2Frun:2/d?sslmode=require"),
        ("postgresql://u@/d?host=h1,::1&port=5433", "postgresql://u@h1:5433,[::1]:5433/d"),
    ],
)  # fmt: skip
def test_what_libpq_takes_is_taken_and_what_means_nothing_here_is_dropped(
    given: str, kept: str | None
) -> None:
    url = read(POSTGRES_URL=given).postgres_url
    assert url == (kept or given)
    assert read(POSTGRES_URL=url or "").postgres_url == url, "a stage reads what the server read"


def test_a_user_is_needed_only_where_nobody_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's numeric user has no name."""

    def fail() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", fail)
    monkeypatch.delenv("PGUSER", raising=False)
    assert "names no user" in refuse(POSTGRES_URL="postgresql://h/d")
    for url in ("postgresql://u@h/d", "postgresql://h/d?user=u"):
        assert read(POSTGRES_URL=url).postgres_url == url
    monkeypatch.setenv("PGUSER", "u")
    assert read(POSTGRES_URL="postgresql://h/d").postgres_url


def test_the_certificates_of_the_system_are_taken_where_libpq_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://github.com/scaleway/docs-content/pull/3286: the client library takes "system" for a file."""
    (tmp_path / "ca.crt").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
    url = read(POSTGRES_URL="postgresql://h/d?sslrootcert=system").postgres_url or ""
    assert set(url.partition("?")[2].split("&")) == {
        f"sslrootcert={quote(str(tmp_path / 'ca.crt'), safe='')}", "sslmode=verify-full",
    }  # fmt: skip
    assert "weaker" in refuse(POSTGRES_URL="postgresql://h/d?sslrootcert=system&sslmode=require")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "lost.crt"))
    assert "sslrootcert" in refuse(POSTGRES_URL="postgresql://h/d?sslrootcert=system")


def test_a_key_that_would_ask_for_its_pass_phrase_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    plain, other = (authority.issue(name, "DNS:client") for name in ("plain", "other"))
    locked = authority.issue("locked", "DNS:client", phrase="secret")
    for name, url in (
        ("REDIS_URL", "rediss+cluster://h:1?ssl_certfile={}&ssl_keyfile={}"),
        ("AMQP_URL", "amqps://h,i/?certfile={}&keyfile={}"),
        ("POSTGRES_URL", "postgresql://h,i/d?sslcert={}&sslkey={}"),
    ):
        assert read(**{name: url.format(plain.file, plain.key)})
        said = refuse(**{name: url.format(locked.file, locked.key)})
        assert f"key{'file' * (name[0] != 'P')} names {locked.key}, whose pass phrase is not known" in said
        assert "can't be used together" in refuse(**{name: url.format(other.file, plain.key)})
    for name, url in (("REDIS_URL", "rediss://h?ssl_keyfile={}"), ("AMQP_URL", "amqps://h/?keyfile={}")):
        assert "certfile: write both" in refuse(**{name: url.format(plain.key)})
    assert read(POSTGRES_URL=f"postgresql://h/d?sslkey={plain.key}"), "its certificate may be elsewhere"
    assert read(POSTGRES_URL=f"postgresql://h/d?sslcert={locked.file}&sslkey={locked.key}&sslpassword=secret")


def test_the_readme_lists_every_setting() -> None:
    table = CliRunner().invoke(main, ["settings", "--markdown"]).output
    readme = (Path(engine.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert table in readme, "write what `flashgrid settings --markdown` prints into README.md"


def test_the_list_says_unit_default_and_meaning() -> None:
    rows: dict[str, Any] = {name: rest for name, *rest in describe_settings()}
    assert rows["FLASHGRID_PORT"][:2] == ["", "8080"]
    assert rows["FLASHGRID_DEV"][1] == "false"
    assert rows["FLASHGRID_ADMIN_TOKEN"][1] == ""
