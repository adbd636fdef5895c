"""Every key of the config: its default, its bounds, and what is said when it is wrong."""

from pathlib import Path
from typing import Final

import pytest

from appservice_bridge.config.faults import ConfigError
from appservice_bridge.config.loading import load
from appservice_bridge.domain.budget import Budget
from appservice_bridge.domain.policy import DeliveryPolicy
from appservice_bridge.domain.transaction import Profile
from tests.config.directory import MINIMAL, Directory


def test_what_is_not_said_has_its_default(directory: Directory) -> None:
    config = directory.load().config
    assert config.homeserver.kind == "synapse"
    assert config.homeserver.url == "http://127.0.0.1:8008"
    assert config.homeserver.capture == "triggers"
    assert (str(config.listen.relay), str(config.listen.admin)) == (
        "127.0.0.1:9009",
        "127.0.0.1:9010",
    )
    assert config.registrations == ("registrations/*.yaml",)
    assert config.data_dir == directory.path / "data"
    assert config.delivery.policy() == DeliveryPolicy()
    assert config.budget.limits() == Budget()
    assert config.admin.tokens == ()
    assert config.admin.metrics == "token"
    assert (config.log.format, config.log.level) == ("plain", "info")


def test_every_key_is_taken(directory: Directory) -> None:
    directory.write("token", "SECRET-ops\n")
    directory.config("""
        database: embedded
        data_dir: ./state
        homeserver:
          {kind: generic, server_name: "example.org:8448", url: "https://hs/", capture: none}
        listen: {relay: "[::1]:9009", admin: "0.0.0.0:9010"}
        registrations: [registrations/my-bot.yaml]
        delivery:
          profile: both
          max_items: 10
          max_body_bytes: 50000
          timeout_seconds: 5.5
          backoff: {first_seconds: 0.5, ceiling_seconds: 30}
          keep_delivered_seconds: 86400
          expire: {typing_seconds: 20, presence_seconds: 0}
        appservices:
          my-bot: {transport: websocket, encryption: off, delete_delivered: on}
        budget: {total_bytes: 3000000, appservice_bytes: 2000000}
        admin:
          tokens: [{name: ops, role: operator, token_file: token}]
          allow_plain_http: true
          metrics: token
        log: {format: json, level: debug}
    """)
    config = directory.load().config
    assert (config.log.format, config.log.level) == ("json", "debug")
    assert config.data_dir == directory.path / "state"
    assert config.homeserver.url == "https://hs"
    assert config.listen.relay_url == "http://[::1]:9009"
    assert config.delivery.profile is Profile.BOTH
    assert config.appservices["my-bot"].encryption == "off"
    assert config.appservices["my-bot"].delete_delivered == "on"
    assert config.budget.limits() == Budget(total_bytes=3_000_000, appservice_bytes=2_000_000)
    assert config.admin.tokens[0].token() == "SECRET-ops"
    assert "SECRET" not in repr(config)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "delivery: {keep_delivered_seconds: 2592001}",
            "delivery.keep_delivered_seconds must be less than or equal to 2592000",
        ),
        (
            "delivery: {keep_delivered_seconds: -1}",
            "delivery.keep_delivered_seconds must be greater than or equal to 0",
        ),
        (
            "delivery: {expire: {typing_seconds: -1}}",
            "delivery.expire.typing_seconds must be greater than or equal to 0",
        ),
        ("delivery: {max_items: 0}", "delivery.max_items must be greater than or equal to 1"),
        ("delivery: {max_items: true}", "delivery.max_items must be a number, not true or"),
        ("delivery: {max_items: many}", "delivery.max_items must be a valid integer"),
        ("delivery: {max_body_bytes: 10}", "delivery.max_body_bytes must be greater than"),
        ("delivery: {max_body_bytes: 99999999}", "delivery.max_body_bytes must be less than"),
        ("delivery: {timeout_seconds: 0}", "delivery.timeout_seconds must be greater than 0"),
        ("delivery: {timeout_seconds: .nan}", "delivery.timeout_seconds must be greater than 0"),
        ("delivery: {timeout_seconds: .inf}", "delivery.timeout_seconds must be less than"),
        ("delivery: {profile: old}", "delivery.profile must be 'unstable', 'stable' or 'both'"),
        (
            "delivery: {backoff: {first_seconds: 5, ceiling_seconds: 4}}",
            "delivery.backoff.ceiling_seconds must be at least first_seconds",
        ),
        ("delivery: 5", "delivery must be a mapping"),
        ("listen: {relay: 9009}", "listen.relay must be host:port"),
        ("listen: {relay: 'host:0'}", "listen.relay must have a port from 1 to 65535"),
        ("listen: {relay: 'host:65536'}", "listen.relay must have a port from 1 to 65535"),
        ("listen: {relay: ':9009'}", "listen.relay must be host:port"),
        ("listen: {relay: '::1:9009'}", "listen.relay must have an IPv6 address in brackets"),
        ("listen: {admin: '127.0.0.1:9009'}", "listen.admin must not be the same address"),
        ("listen: {tls_key_file: config.yaml}", "listen tls_cert_file and tls_key_file go"),
        ("registrations: [5]", "registrations.0 must be text"),
        ("registrations: my-bot.yaml", "registrations must be a list"),
        ("appservices: {my-bot: {transport: tcp}}", "appservices.my-bot.transport must be 'auto'"),
        ("appservices: {my-bot: {encryption: 1}}", "appservices.my-bot.encryption must be 'auto'"),
        ("appservices: {my-bot: {max_items: 0}}", "appservices.my-bot.max_items must be greater"),
        (
            "appservices: {my-bot: {backoff: {first_seconds: 61}}}",
            "appservices.my-bot.backoff ceiling_seconds must be at least first_seconds",
        ),
        ("admin: {tokens: [{name: a, role: root}]}", "admin.tokens.0.role must be 'viewer'"),
        ("log: {format: yaml}", "log.format must be 'plain' or 'json'"),
        ("data_dir: 5", "data_dir must be a path"),
        ("budget: {total_bytes: 999999}", "budget.total_bytes must be greater than or equal to"),
        ("budget: {total_bytes: 10 GiB}", "budget.total_bytes must be a valid integer"),
        ("budget: {appservice_bytes: true}", "budget.appservice_bytes must be a number, not true"),
        (
            "budget: {total_bytes: 2000000, appservice_bytes: 2000001}",
            (
                "budget.appservice_bytes is 2000001 and must be at most total_bytes,"
                " which is 2000000: lower it, or raise budget.total_bytes"
            ),
        ),
        (
            "budget: {appservice_bytes: 20000000000}",
            (
                "budget.appservice_bytes is 20000000000 and must be at most total_bytes,"
                " which is 10737418240: lower it, or raise budget.total_bytes"
            ),
        ),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_line(
    directory: Directory, text: str, fault: str
) -> None:
    directory.add(text)
    assert directory.faults()[0].startswith(f"config.yaml:4: {fault}"), directory.faults()


def test_metrics_are_open_on_loopback_only(directory: Directory) -> None:
    directory.add("admin: {metrics: open}")
    assert directory.load().config.admin.metrics == "open"
    directory.add("listen: {admin: '10.0.0.1:9010'}\nadmin: {metrics: open}")
    (fault,) = directory.faults()
    assert fault.startswith("config.yaml:5: admin.metrics must be token where listen.admin is not")


@pytest.mark.parametrize("key", ["not base64", "AAAA", "A" * 44, "", "é" * 43, 5, "A" * 43 + "=="])
def test_a_verify_key_is_32_bytes_of_base64(directory: Directory, key: object) -> None:
    directory.config(f"{MINIMAL}  verify_keys: {{'ed25519:a_1': {key!r}}}\n")
    (fault,) = directory.faults()
    assert fault.startswith("config.yaml:4: homeserver.verify_keys")


def test_a_verify_key_has_an_id_of_its_algorithm(directory: Directory) -> None:
    sound = "A" * 43
    for key_id in ("a_1", "rsa:a_1", "ed25519:", "ed25519:a 1", "ed25519:é"):
        directory.config(f"{MINIMAL}  verify_keys: {{{key_id!r}: {sound}}}\n")
        (fault,) = directory.faults()
        assert "like ed25519:a_1" in fault
    directory.config(f"{MINIMAL}  verify_keys: {{'ed25519:a_1': {sound}}}\n")
    assert directory.load().config.homeserver.verify_keys == {"ed25519:a_1": sound}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("databse: x", "databse is not a known key; did you mean database?"),
        ("listen: {relai: x}", "listen.relai is not a known key; did you mean relay?"),
        ("server_name: x", "server_name is not a known key; did you mean homeserver.server_name?"),
        ("max_items: 5", "max_items is not a known key; did you mean delivery.max_items?"),
        ("delivery: {backof: 1}", "delivery.backof is not a known key; did you mean backoff?"),
        (
            "appservices: {my-bot: {delivry: 1}}",
            "appservices.my-bot.delivry is not a known key; did you mean delivery?",
        ),
        (
            "admin: {tokens: [{name: a, role: viewer, token_fiel: config.yaml}]}",
            "admin.tokens.0.token_fiel is not a known key; did you mean token_file?",
        ),
        (
            "listen: {qqq: 1}",
            "listen.qqq is not a known key; known are relay, admin, tls_cert_file",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    directory: Directory, key: str, meant: str
) -> None:
    directory.add(key)
    assert any(fault.startswith(f"config.yaml:4: {meant}") for fault in directory.faults())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("homeserver: {server_name: a}", "config.yaml: database is missing"),
        ("database: postgres://h/d\nhomeserver: {}", "config.yaml:2: homeserver.server_name is"),
        ("database: mysql://h/d\nhomeserver: {server_name: a}", "config.yaml:1: database must be"),
        (
            "database: embedded\nhomeserver: {server_name: a}",
            "config.yaml:1: database embedded goes with homeserver.kind generic",
        ),
        (
            "database: postgres://h/d\nhomeserver: {server_name: 'https://a'}",
            "config.yaml:2: homeserver.server_name must be the part of user ids after the colon",
        ),
        (
            "database: postgres://h\nhomeserver: {kind: generic, server_name: a, capture: polling}",
            "config.yaml:2: homeserver.capture must be none with kind generic",
        ),
    ],
)
def test_the_database_and_the_homeserver_must_be_named(
    directory: Directory, text: str, fault: str
) -> None:
    directory.config(text)
    assert directory.faults()[0].startswith(fault), directory.faults()


def test_another_homeserver_has_nothing_captured(directory: Directory) -> None:
    directory.config("{database: embedded, homeserver: {kind: generic, server_name: a}}")
    assert directory.load().config.homeserver.capture == "none"


def test_one_appservice_may_by_default_take_all_of_a_small_budget(directory: Directory) -> None:
    directory.add("budget: {total_bytes: 2000000}")
    assert directory.load().config.budget.appservice_bytes == 2_000_000
    directory.add("budget: {total_bytes: 20000000000}")
    assert directory.load().config.budget.appservice_bytes == Budget().appservice_bytes


def test_a_section_whose_lines_are_all_commented_out_has_its_defaults(directory: Directory) -> None:
    directory.add("delivery:\n  # max_items: 5\nappservices:\n  my-bot:\nadmin:\n")
    config = directory.load().config
    assert config.delivery.max_items == 1000
    assert config.appservices["my-bot"].transport == "auto"


def test_the_password_file_is_laid_into_the_dsn_percent_encoded(directory: Directory) -> None:
    directory.write("password", "\ufeffSECRET p@ss/word:ü\n")
    directory.add("database_password_file: password")
    assert directory.load().config.dsn() == (
        "postgresql://bridge:SECRET%20p%40ss%2Fword%3A%C3%BC@localhost/synapse"
    )


@pytest.mark.parametrize(
    ("database", "dsn"),
    [
        (
            "postgresql://bridge@a:1,b:2/synapse?target_session_attrs=primary",
            "postgresql://bridge:pw@a:1,b:2/synapse?target_session_attrs=primary",
        ),
        ("postgresql://h:1/synapse", "postgresql://:pw@h:1/synapse"),
        ("postgresql://u@/synapse?host=/run/pg", "postgresql://u:pw@/synapse?host=/run/pg"),
        ("postgresql:///synapse?host=/run/pg", "postgresql://:pw@/synapse?host=/run/pg"),
    ],
)
def test_a_password_fits_into_every_form_of_dsn(
    directory: Directory, database: str, dsn: str
) -> None:
    directory.write("password", "pw")
    text = MINIMAL.replace("postgresql://bridge@localhost/synapse", database)
    directory.config(text + "database_password_file: password")
    assert directory.load().config.dsn() == dsn


def test_a_password_is_given_once(directory: Directory) -> None:
    directory.write("password", "pw")
    text = MINIMAL.replace("bridge@", "bridge:SECRET@")
    directory.config(text + "database_password_file: password")
    (fault,) = directory.faults()
    assert fault.endswith("database holds a password already; keep one of the two")
    assert "SECRET" not in fault


def test_a_password_in_the_dsn_is_never_shown(directory: Directory) -> None:
    directory.config(MINIMAL.replace("bridge@", "bridge:SECRET@"))
    assert "SECRET" not in repr(directory.load())
    directory.config(MINIMAL.replace("bridge@localhost", "bridge:SECRET@\u2100"))
    assert "SECRET" not in "".join(directory.faults())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "secret: no such file"),
        (b"\n", "secret: is empty"),
        (b"SECRET\nSECRET", "secret: holds more than one line"),
        (b"SECRET\xff", "secret: is not UTF-8 text"),
    ],
)
def test_a_secret_file_that_holds_no_secret_is_a_fault(
    directory: Directory, content: bytes | None, fault: str
) -> None:
    if content is not None:
        directory.write("secret", content)
    token = "{name: a, role: viewer, token_file: secret}"
    directory.add(f"database_password_file: secret\nadmin: {{tokens: [{token}]}}")
    password, admin = directory.faults()
    assert password.startswith(f"config.yaml:4: database_password_file {fault}")
    assert admin.startswith(f"config.yaml:5: admin.tokens.0.token_file {fault}")
    assert "SECRET" not in password + admin


def test_a_secret_file_that_goes_away_later_is_named(directory: Directory) -> None:
    password = directory.write("password", "pw")
    directory.add("database_password_file: password")
    config = directory.load().config
    password.unlink()
    with pytest.raises(ConfigError, match="password: no such file"):
        config.dsn()


def test_an_embedded_database_has_no_dsn_before_it_runs(directory: Directory) -> None:
    directory.config("{database: embedded, homeserver: {kind: generic, server_name: a}}")
    with pytest.raises(ValueError, match="embedded"):
        directory.load().config.dsn()


def test_two_operators_never_share_a_name_or_a_token(directory: Directory) -> None:
    directory.write("one", "SECRET")
    directory.write("two", "SECRET")
    one, two = "{name: a, role: viewer, token_file: one}", "{name: b, role: admin, token_file: two}"
    directory.add(f"admin: {{tokens: [{one}, {two}]}}")
    assert directory.faults()[0].endswith("admin.tokens two token files hold the same token")
    directory.add(f"admin: {{tokens: [{one}, {one}]}}")
    assert directory.faults()[0].endswith("admin.tokens two tokens have the same name")


def test_a_certificate_and_its_key_make_the_relay_speak_tls(directory: Directory) -> None:
    directory.write("cert.pem", "x")
    directory.write("key.pem", "x")
    directory.add("listen: {tls_cert_file: cert.pem, tls_key_file: key.pem}")
    listen = directory.load().config.listen
    assert listen.relay_url == "https://127.0.0.1:9009"
    assert listen.tls_key_file == directory.path / "key.pem"


PLAIN: Final = (
    "listen: {admin: '10.0.0.1:9010'}\nadmin: {tokens: [{name: a, role: admin, token_file: t}]"
)


def test_tokens_do_not_cross_a_network_in_the_clear_unless_that_is_said(
    directory: Directory,
) -> None:
    directory.write("t", "SECRET-long-enough-to-be-one\n")
    directory.write("c.pem", "x")
    directory.add(PLAIN + "}")
    (fault,) = directory.faults()
    assert "in the clear at 10.0.0.1:9010" in fault
    for more in ("allow_plain_http: true", "tls_cert_file: c.pem, tls_key_file: c.pem"):
        directory.add(f"{PLAIN}, {more}}}")
        assert directory.load().config.admin.tokens
    directory.add("listen: {admin: '10.0.0.1:9010'}")
    assert directory.load().config.admin.tokens == ()
    directory.add("listen: {admin: 'localhost:9010'}\n" + PLAIN.partition("\n")[2] + "}")
    assert directory.load().warnings == ()
    directory.write("t", "short\n")
    assert "can be guessed" in directory.load().warnings[0].reason


def test_relative_paths_start_at_the_config_file(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    loaded = directory.load()
    assert loaded.config.data_dir == directory.path / "data"
    assert Path(loaded.registrations[0].source).is_relative_to(directory.path)
    monkeypatch.chdir(directory.path)
    assert load(Path("config.yaml")).config.data_dir == directory.path / "data"


@pytest.mark.parametrize("name", ["on", "123", "null", "a b/ü", "~"])
def test_an_id_is_the_text_as_written_and_may_be_anything(directory: Directory, name: str) -> None:
    directory.register(id=name)
    directory.add(f"appservices:\n  {name}: {{max_items: 7}}")
    assert directory.load().config.appservices[name].max_items == 7
