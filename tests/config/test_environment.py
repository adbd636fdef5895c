"""Every key may come from the environment, and then the variable is what a fault names."""

import pytest

from tests.config.directory import Directory

Environ = pytest.MonkeyPatch


def test_a_variable_overrides_the_file_key_by_key(
    directory: Directory, monkeypatch: Environ
) -> None:
    directory.add("delivery: {max_items: 5, profile: both}")
    monkeypatch.setenv("APPSERVICE_BRIDGE_HOMESERVER__URL", "http://hs:8008")
    monkeypatch.setenv("APPSERVICE_BRIDGE_DELIVERY__MAX_ITEMS", "6")
    monkeypatch.setenv("APPSERVICE_BRIDGE_DELIVERY__BACKOFF__CEILING_SECONDS", "7")
    config = directory.load().config
    assert config.homeserver.url == "http://hs:8008"
    assert config.homeserver.server_name == "example.org"
    assert (config.delivery.max_items, config.delivery.profile) == (6, "both")
    assert config.delivery.backoff.ceiling_seconds == 7


def test_a_list_comes_as_json_and_replaces_the_whole_list(
    directory: Directory, monkeypatch: Environ
) -> None:
    directory.write("token", "SECRET")
    directory.add("registrations: [gone/*.yaml]")
    token = '[{"name": "a", "role": "admin", "token_file": "token"}]'
    monkeypatch.setenv("APPSERVICE_BRIDGE_REGISTRATIONS", '["registrations/my-bot.yaml"]')
    monkeypatch.setenv("APPSERVICE_BRIDGE_ADMIN__TOKENS", token)
    loaded = directory.load()
    assert [registration.id for registration in loaded.registrations] == ["my-bot"]
    assert loaded.config.admin.tokens[0].token_file == directory.path / "token"


def test_an_appservice_may_be_set_by_its_id_or_as_json(
    directory: Directory, monkeypatch: Environ
) -> None:
    monkeypatch.setenv("APPSERVICE_BRIDGE_APPSERVICES", '{"my-bot": {"max_items": 5}}')
    monkeypatch.setenv("APPSERVICE_BRIDGE_APPSERVICES__MY-BOT__ENCRYPTION", "on")
    section = directory.load().config.appservices["my-bot"]
    assert (section.max_items, section.encryption) == (5, "on")


def test_a_whole_config_may_come_from_the_environment(
    directory: Directory, monkeypatch: Environ
) -> None:
    directory.config("{}")
    monkeypatch.setenv("APPSERVICE_BRIDGE_DATABASE", "postgresql://h/d")
    monkeypatch.setenv("APPSERVICE_BRIDGE_HOMESERVER__SERVER_NAME", "example.org")
    assert directory.load().config.dsn() == "postgresql://h/d"


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("DELIVERY__MAX_ITEMS", "0", "delivery.max_items must be greater than or equal to 1"),
        (
            "DELIVERY__MAX_ITEM",
            "1",
            "delivery.max_item is not a known key; did you mean max_items?",
        ),
        ("REGISTRATIONS", "a.yaml", "registrations must be a list; in a variable, as JSON"),
        (
            "REGISTRATIONS",
            '["gone/*"]',
            (
                "gone/* matches no file; relative paths start at the config file; if its "
                "appservices are to be gone, write `APPSERVICE_BRIDGE_REGISTRATIONS=[]`"
            ),
        ),
        ("DELIVERY", "SECRET{", "delivery must be a mapping"),
        ("LISTEN", '{"relay": "x"}', "listen.relay must be host:port"),
        ("DATABASE", "mysql://SECRET", "database must be embedded or like postgresql://"),
        ("APPSERVICES__MY-BOTT__MAX_ITEMS", "5", "appservices.my-bott has no registration"),
    ],
)
def test_a_fault_from_the_environment_names_the_variable(
    directory: Directory, monkeypatch: Environ, variable: str, value: str, fault: str
) -> None:
    monkeypatch.setenv(f"APPSERVICE_BRIDGE_{variable}", value)
    found = directory.faults()
    assert found[0].startswith(f"environment: APPSERVICE_BRIDGE_{variable}: {fault}"), found
    assert "SECRET" not in "".join(found)


def test_a_fault_in_the_file_is_not_blamed_on_a_variable_beside_it(
    directory: Directory, monkeypatch: Environ
) -> None:
    directory.add("delivery: {max_items: 0}")
    monkeypatch.setenv("APPSERVICE_BRIDGE_DELIVERY", '{"profile": "both"}')
    assert directory.faults()[0].startswith("config.yaml:4: delivery.max_items")


def test_a_misspelt_section_in_a_variable_is_a_fault(
    directory: Directory, monkeypatch: Environ
) -> None:
    monkeypatch.setenv("APPSERVICE_BRIDGE_HOMESERVR__URL", "http://hs")
    assert directory.faults() == [
        (
            "environment: APPSERVICE_BRIDGE_HOMESERVR__URL sets no known key;"
            " did you mean APPSERVICE_BRIDGE_HOMESERVER__URL?"
        )
    ]


def test_variables_of_others_do_no_harm(directory: Directory, monkeypatch: Environ) -> None:
    monkeypatch.setenv("APPSERVICE_BRIDGE_CONFIG", "config.yaml")
    monkeypatch.setenv("APPSERVICE_BRIDGE_PORT", "tcp://10.0.0.1:9009")
    monkeypatch.setenv("APPSERVICE_BRIDGE_SERVICE_HOST", "10.0.0.1")
    assert directory.warnings() == []
