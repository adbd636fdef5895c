"""The client sends a batch until it is answered, always the same bytes, and gives up on a no."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from signedjson.key import encode_signing_key_base64, generate_signing_key

from appservice_bridge.client import BatchRefusedError, IngestClient, sign_batch
from tests.support.appservice import Appservice, Request, appservice
from tests.support.bridge import SERVER, registration, worker
from tests.support.ingesting import KEY, ingest_files, message, one_bot

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ingest_homeserver.py"


@asynccontextmanager
async def client_of(relay_url: str, key: object = KEY) -> AsyncIterator[IngestClient]:
    async with aiohttp.ClientSession() as session:
        yield IngestClient(
            session, relay_url, origin=SERVER, signing_key=key, longest_rest_seconds=0.3
        )


def verdicts(_request: Request) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, b'{"results":[{"status":"accepted"}]}'


async def test_it_sends_the_same_id_and_bytes_until_it_is_answered() -> None:
    async with appservice() as server, client_of(server.url) as client:
        no = b'{"errcode":"M_X"}'
        told = [(503, no), (500, b"no json"), (429, b"[]"), (200, b"{}"), (404, no), (401, no)]
        answers = iter([*told, (502, b""), (400, b"of a proxy")])

        def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
            status, body = next(answers, (0, b""))
            return (status, {}, body) if status else verdicts(request)

        server.answer = answer
        assert await client.send([message()]) == [{"status": "accepted"}]
    assert len(server.requests) == 9
    assert len({(request.path, request.body) for request in server.requests}) == 1


async def test_it_goes_on_where_nobody_listens_yet(database: str, tmp_path: Path) -> None:
    async with appservice() as bot:
        files = ingest_files(tmp_path, database, [registration("bot", bot.url, users=["@b_.*"])])
        async with client_of(files.relay_url) as client:
            sending = asyncio.create_task(client.send([message()]))
            await asyncio.sleep(0.5)
            assert not sending.done()
            async with worker(files):
                assert await asyncio.wait_for(sending, 60) == [{"status": "accepted"}]
                await bot.until(lambda: len(bot.to_device) == 1)


@pytest.mark.parametrize("status", [400, 403, 409, 413])
async def test_a_batch_that_is_refused_whole_is_not_sent_again(status: int) -> None:
    async with appservice() as server, client_of(server.url) as client:
        server.answer = lambda _: (status, {}, b'{"errcode":"M_X","error":"why"}')
        with pytest.raises(BatchRefusedError) as refused:
            await client.send([message()])
    assert (refused.value.status, refused.value.errcode) == (status, "M_X")
    assert len(server.requests) == 1


async def test_it_follows_no_redirect() -> None:
    async with appservice() as other, appservice() as server, client_of(server.url) as client:
        server.answer = lambda _: (308, {"Location": other.url}, b"")
        sending = asyncio.create_task(client.send([message()]))
        await server.until(lambda: len(server.requests) == 2)
        server.answer = verdicts
        await sending
    assert other.requests == []


async def test_a_key_that_is_not_the_homeservers_is_told_so(database: str, tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (_, hs):
        stranger = client_of(hs.base_url, generate_signing_key("a_1"))
        with pytest.raises(BatchRefusedError) as refused:
            async with stranger as client:
                await client.send([message()])
    assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")


async def test_a_stored_batch_may_be_sent_by_another_client(database: str, tmp_path: Path) -> None:
    batch = sign_batch([message(1)], origin=SERVER, signing_key=KEY, batch_id="a/b ü")
    async with one_bot(tmp_path, database) as (bot, hs):
        for _ in range(2):
            async with client_of(hs.base_url) as client:
                assert await client.send_batch(batch) == [{"status": "accepted"}]
        async with client_of(hs.base_url) as client:
            await client.send([message(2)])
        await bot.until(lambda: len(bot.to_device) == 2)
    assert [item["content"]["n"] for item in bot.to_device] == [1, 2]


async def test_what_canonical_json_cannot_hold_is_refused_before_it_is_signed() -> None:
    for bad in (float("nan"), "\ud800"):
        with pytest.raises(ValueError):
            sign_batch([message(content={"x": bad})], origin=SERVER, signing_key=KEY)


async def test_the_example_hands_over_what_a_bot_then_gets(database: str, tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (bot, hs):
        (tmp_path / "signing.key").write_text(f"ed25519 a_1 {encode_signing_key_base64(KEY)}")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(EXAMPLE), hs.base_url, SERVER),
            *(str(tmp_path / "signing.key"), "@b_1:example.org", "DEV"),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0
        await bot.until(lambda: len(bot.to_device) == 1 and says_zero(bot))
    assert output.decode().splitlines() == [
        "to_device {'status': 'accepted'}",
        "one_time_key_counts {'status': 'accepted'}",
    ]
    assert bot.to_device[0]["content"] == {"body": "hello"}


def says_zero(bot: Appservice) -> bool:
    return any(b'{"signed_curve25519":0}' in request.body for request in bot.taken)
