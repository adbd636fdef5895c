"""Where a person of a test keeps nothing, a client of nio's must not notice."""

import nio
import pytest
from nio.crypto import OlmDevice

from appservice_bridge.testing.person_store import ONE_TIME_KEYS, PersonStore

KEYS = {"ed25519": "ed", "curve25519": "curve"}


@pytest.fixture
def client() -> nio.AsyncClient:
    config = nio.AsyncClientConfig(encryption_enabled=True, store=PersonStore)
    client = nio.AsyncClient(
        "http://127.0.0.1:9", "@a:example.org", store_path="in memory", config=config
    )
    client.restore_login("@a:example.org", "DEVICE", "token")
    return client


def test_it_publishes_a_few_keys_and_those_that_were_taken(client: nio.AsyncClient) -> None:
    first = client.olm.share_keys()["one_time_keys"]
    client.olm.handle_response(nio.KeysUploadResponse(0, ONE_TIME_KEYS))
    assert len(first) == ONE_TIME_KEYS
    assert not client.should_upload_keys
    client.olm.uploaded_key_count = ONE_TIME_KEYS - 2
    assert client.should_upload_keys
    fresh = client.olm.share_keys()["one_time_keys"]
    assert len(fresh) == 2
    assert not fresh.keys() & first.keys()


@pytest.mark.parametrize("word", ["verify", "blacklist", "ignore"])
def test_trust_in_a_device_is_given_and_taken_back(client: nio.AsyncClient, word: str) -> None:
    device = OlmDevice("@b:example.org", "THEIRS", dict(KEYS))
    give, take = (getattr(client, f"{prefix}{word}_device") for prefix in ("", "un"))
    state = {"verify": "verified", "blacklist": "blacklisted", "ignore": "ignored"}[word]
    assert [give(device), getattr(device, state), give(device)] == [True, True, False]
    assert getattr(client.store, f"is_device_{state}")(device)
    assert [take(device), getattr(device, state), take(device)] == [True, False, False]
    assert not getattr(client.store, f"is_device_{state}")(device)


def test_two_people_share_nothing(client: nio.AsyncClient) -> None:
    other = nio.AsyncClient(
        *("http://127.0.0.1:9", "@b:example.org"),
        store_path="in memory",
        config=nio.AsyncClientConfig(encryption_enabled=True, store=PersonStore),
    )
    other.restore_login("@b:example.org", "DEVICE", "token")
    assert other.olm.account.identity_keys != client.olm.account.identity_keys
    other.olm.device_store.add(OlmDevice("@c:example.org", "THEIRS", dict(KEYS)))
    assert not list(client.olm.device_store.active_user_devices("@c:example.org"))
