"""Keys are asked from the homeserver, believed when it signed them, and not asked for too often."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json

from appservice_bridge.http import homeserver_keys
from appservice_bridge.http.homeserver_keys import HomeserverKeys, KeysUnavailableError
from tests.support.appservice import appservice
from tests.support.bridge import SERVER, registration, worker, write_files
from tests.support.ingesting import batch_of, message, sender, signed

DAY_MS = 86_400_000


@dataclass(kw_only=True)
class Published:
    """What a homeserver answers to /_matrix/key/v2/server; as Synapse does, the real keys of it."""

    url: str = ""
    keys: list[Any] = field(default_factory=lambda: [generate_signing_key("a_1")])
    old_keys: list[Any] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    status: int = 200
    asked: int = 0

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "server_name": SERVER,
            "valid_until_ts": int(time.time() * 1000) + DAY_MS,
            "verify_keys": {key_id(one): {"key": public(one)} for one in self.keys},
            "old_verify_keys": {
                key_id(one): {"key": public(one), "expired_ts": 1} for one in self.old_keys
            },
        } | self.changes
        for one in (*self.keys, *self.old_keys):
            document = sign_json(document, SERVER, one)
        return document

    async def answer(self, _request: web.Request) -> web.Response:
        self.asked += 1
        body = json.dumps(self.document()).encode() if self.raw is None else self.raw
        return web.Response(status=self.status, body=body)


def key_id(key: Any) -> str:
    return f"ed25519:{key.version}"


def public(key: Any) -> str:
    found: str = encode_verify_key_base64(get_verify_key(key))
    return found


@pytest.fixture
async def homeserver() -> AsyncIterator[Published]:
    one = Published()
    app = web.Application()
    app.router.add_get("/_matrix/key/v2/server", one.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    one.url = f"http://{host}:{port}"
    yield one
    await runner.cleanup()


@pytest.fixture
async def keys(homeserver: Published) -> AsyncIterator[HomeserverKeys]:
    async with aiohttp.ClientSession() as session:
        yield HomeserverKeys(session, homeserver.url, SERVER, {})


async def test_a_batch_is_checked_with_the_key_that_the_homeserver_publishes(
    homeserver: Published, database: str, tmp_path: Path
) -> None:
    (key,) = homeserver.keys
    async with appservice() as bot:
        bots = [registration("bot", bot.url, users=["@b_.*"])]
        generic = {"kind": "generic"}
        files = write_files(
            tmp_path, database, bots, homeserver=generic, homeserver_url=homeserver.url
        )
        async with worker(files), sender(files.relay_url) as hs:
            for n in range(3):
                batch = signed(batch_of(str(n), message(n)), key=key)
                assert (await hs.put(str(n), json.dumps(batch).encode())).status == 200
            stranger = signed(batch_of("x", message()), key=generate_signing_key("a_1"))
            refused = await hs.put("x", json.dumps(stranger).encode())
            assert refused.refusal == (403, "M_FORBIDDEN")
            await bot.until(lambda: len(bot.to_device) == 3)
    assert homeserver.asked == 1


async def test_while_no_keys_are_known_a_batch_is_answered_503_and_taken_later(
    homeserver: Published, database: str, tmp_path: Path
) -> None:
    (key,) = homeserver.keys
    homeserver.status = 502
    bots = [registration("bot", "http://127.0.0.1:9")]
    files = write_files(
        tmp_path, database, bots, homeserver={"kind": "generic"}, homeserver_url=homeserver.url
    )
    body = json.dumps(signed(batch_of("1", message()), key=key)).encode()
    async with worker(files), sender(files.relay_url) as hs:
        for _ in range(5):
            assert (await hs.put("1", body)).refusal == (503, "M_UNKNOWN")
        assert homeserver.asked <= 2  # once a second while there is no answer
        homeserver.status = 200
        async with asyncio.timeout(60):
            while (await hs.put("1", body)).status != 200:
                await asyncio.sleep(0.2)


async def test_an_unknown_key_id_is_asked_for_once_a_minute(
    homeserver: Published, keys: HomeserverKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(await keys.find(["ed25519:a_1"])) == ["ed25519:a_1"]
    homeserver.keys.append(generate_signing_key("b_2"))
    for _ in range(20):
        assert await keys.find(["ed25519:b_2"]) == {}
    assert homeserver.asked == 1  # the minute began with the first question
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda now=loop.time: now() + 61)
    for _ in range(20):
        assert list(await keys.find(["ed25519:b_2"])) == ["ed25519:b_2"]
        assert await keys.find(["ed25519:unheard_of"]) == {}
    assert homeserver.asked == 2


async def test_keys_are_asked_for_again_when_they_are_no_longer_valid(
    homeserver: Published, keys: HomeserverKeys
) -> None:
    homeserver.changes = {"valid_until_ts": int(time.time() * 1000) + 4000}
    first = await keys.find(["ed25519:a_1"])
    homeserver.keys = [generate_signing_key("a_1")]
    assert await keys.find(["ed25519:a_1"]) == first
    await asyncio.sleep(4.1)
    with pytest.raises(KeysUnavailableError):  # the old ones hold no longer, nor does the answer
        await keys.find(["ed25519:a_1"])
    homeserver.changes = {}
    await asyncio.sleep(1.1)
    renewed = await keys.find(["ed25519:a_1"])
    assert renewed != first
    assert list(renewed) == ["ed25519:a_1"]


async def test_no_key_holds_longer_than_a_week(homeserver: Published) -> None:
    homeserver.changes = {"valid_until_ts": 10**17}
    now = time.time()
    _, until = homeserver_keys.published_keys(homeserver.document(), SERVER, now=now)
    assert until == now + 7 * 86_400


async def test_a_key_that_the_homeserver_calls_old_is_not_taken(
    homeserver: Published, keys: HomeserverKeys
) -> None:
    homeserver.old_keys = [generate_signing_key("old")]
    assert list(await keys.find(["ed25519:old", "ed25519:a_1"])) == ["ed25519:a_1"]


async def test_a_key_that_did_not_sign_the_answer_is_not_taken(
    homeserver: Published, keys: HomeserverKeys
) -> None:
    forged = generate_signing_key("forged")
    document = homeserver.document()
    del document["signatures"]
    document["verify_keys"]["ed25519:forged"] = {"key": public(forged)}
    homeserver.raw = json.dumps(sign_json(document, SERVER, homeserver.keys[0])).encode()
    assert list(await keys.find(["ed25519:forged", "ed25519:a_1"])) == ["ed25519:a_1"]


@pytest.mark.parametrize(
    ("changes", "raw"),
    [
        ({"server_name": "elsewhere.org"}, None),
        ({"valid_until_ts": 1}, None),
        ({"valid_until_ts": "soon"}, None),
        ({"verify_keys": {}}, None),
        ({"verify_keys": []}, None),
        ({"verify_keys": {"ed25519:a_1": {"key": "AAAA"}}}, None),
        ({}, b"no json"),
        ({}, b"[]"),
        ({}, b"{}"),
        ({}, b"[" * 60_000),
        ({}, b" " * 70_000 + b"{}"),
    ],
)
async def test_an_answer_that_is_none_gives_no_keys(
    homeserver: Published, keys: HomeserverKeys, changes: dict[str, Any], raw: bytes | None
) -> None:
    homeserver.changes, homeserver.raw = changes, raw
    with pytest.raises(KeysUnavailableError):
        await keys.find(["ed25519:a_1"])


async def test_an_answer_that_was_altered_gives_no_keys(
    homeserver: Published, keys: HomeserverKeys
) -> None:
    altered = homeserver.document() | {"more": 1}
    homeserver.raw = json.dumps(altered).encode()
    with pytest.raises(KeysUnavailableError):
        await keys.find(["ed25519:a_1"])
