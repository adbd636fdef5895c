"""What holds for one appservice once every `auto` is decided."""

from typing import Any

import pytest

from appservice_bridge.config.model import AppserviceSettings
from appservice_bridge.domain.expiry import Expiry
from tests.config.directory import Directory


def settings(directory: Directory, section: str = "", **changes: Any) -> AppserviceSettings:
    directory.register(**changes)
    directory.add(f"appservices: {{my-bot: {{{section}}}}}")
    loaded = directory.load()
    return loaded.config.settings(loaded.registrations[0])


@pytest.mark.parametrize(
    ("section", "url", "transport"),
    [
        ("", "http://127.0.0.1:29300", "http"),
        ("", None, "none"),
        ("", "websocket", "websocket"),
        ("transport: none", "http://127.0.0.1:29300", "none"),
        ("transport: websocket", None, "websocket"),
        ("transport: poll", None, "poll"),
    ],
)
def test_auto_sends_by_http_and_nothing_where_url_is_null(
    directory: Directory, section: str, url: str | None, transport: str
) -> None:
    assert settings(directory, section, url=url).transport == transport


@pytest.mark.parametrize(
    ("section", "registered", "encryption", "deleted"),
    [
        ("", None, True, False),
        ("", True, True, True),
        ("", False, False, False),
        ("encryption: on", None, True, True),
        ("encryption: on", False, True, True),
        ("encryption: off", True, False, False),
        ("delete_delivered: off", True, True, False),
        ("delete_delivered: on", None, True, True),
        ("delete_delivered: on, encryption: off", None, False, False),
    ],
)
def test_encryption_is_on_unless_refused_and_deleting_only_where_asked_for(
    directory: Directory,
    section: str,
    registered: bool | None,
    encryption: bool,
    deleted: bool,
) -> None:
    changes = {} if registered is None else {"org.matrix.msc3202": registered}
    found = settings(directory, section, **changes)
    assert (found.encryption, found.delete_delivered) == (encryption, deleted)


def test_an_appservice_overrides_only_the_delivery_keys_it_names(directory: Directory) -> None:
    directory.add("""
delivery: {max_items: 5, max_body_bytes: 5000, backoff: {first_seconds: 2, ceiling_seconds: 8}}
appservices: {my-bot: {max_items: 7, backoff: {ceiling_seconds: 9}}}
""")
    loaded = directory.load()
    delivery = loaded.config.settings(loaded.registrations[0]).delivery
    assert (delivery.max_items, delivery.max_body_bytes) == (7, 5000)
    assert (delivery.backoff.first_seconds, delivery.backoff.ceiling_seconds) == (2.0, 9.0)


def test_an_appservice_the_config_does_not_name_has_the_general_settings(
    directory: Directory,
) -> None:
    directory.add("delivery: {profile: both, timeout_seconds: 7}")
    loaded = directory.load()
    found = loaded.config.settings(loaded.registrations[0])
    assert (found.delivery.profile, found.delivery.timeout_seconds) == ("both", 7.0)
    assert (found.transport, found.encryption) == ("http", True)


def test_an_appservice_may_keep_and_expire_otherwise_than_all_do(directory: Directory) -> None:
    directory.add("""
delivery: {keep_delivered_seconds: 60, expire: {typing_seconds: 5, presence_seconds: 0}}
appservices: {my-bot: {keep_delivered_seconds: 0, expire: {presence_seconds: 9}}}
""")
    loaded = directory.load()
    delivery = loaded.config.settings(loaded.registrations[0]).delivery
    assert delivery.keep_delivered_seconds == 0
    assert delivery.expiry == Expiry(typing_seconds=5.0, presence_seconds=9.0)
    assert loaded.config.delivery.policy().expiry.presence_seconds is None
