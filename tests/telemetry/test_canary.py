"""P10: whatever comes in by whatever way, no output ever holds a payload or a token.

Everything that comes in holds one and the same canary: every token, every content, every answer of
the appservices and of the homeserver. Everything that goes out to people is read for it: the log at
its most talkative, plain and as JSON, tracebacks, every command, and what the admin port answers.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import structlog
from yarl import URL

from appservice_bridge.cli.main import COMMANDS
from tests.support.appservice import Appservice, Request, appservice
from tests.support.bridge import Files, WorkerProcess, worker_process
from tests.support.canaries import (
    CANARY,
    POISON,
    ROLES,
    UNSTORABLE,
    UNSTORED,
    Heard,
    broken_configs,
    logs,
    password_of,
    secret_files,
)
from tests.support.connecting import connected, polling
from tests.support.delivered import add_device
from tests.support.facts import Connection, attach, send, wait_until, where_it_is
from tests.support.ingesting import batch_of, message, sender, signed
from tests.support.relaying import Homeserver, homeserver

USERS: Final = ("@bot_1:example.org", "@sock_1:example.org", "@asker_1:example.org")
DEAD: Final = "select count(*) >= {} from appservice_bridge.dead_letter"
ANSWER: Final = json.dumps({"errcode": "M_BAD_JSON", "error": CANARY}).encode()
# What ends the worker: a table that is not there, and a row that no code of ours wrote.
AWAY: Final = "alter table appservice_bridge.sealed{} rename to sealed{}"
ODD: Final = f"""
with head as (
    update appservice_bridge.outbox_head set position = position + 1 where appservice_id = 'bot'
    returning position
)
insert into appservice_bridge.outbox (appservice_id, position, kind, captured_at, payload)
select 'bot', position, 'odd', now(), convert_to('{CANARY}', 'UTF8') from head
"""

ELSEWHERE: Final = {"run", "dev", "bench"}  # the first runs here; the others use their own database
RUN: Final[dict[str, list[list[str]]]] = {
    "check": [[], ["--json"]],
    "doctor": [[], ["--json"], ["--homeserver-config", "homeserver.yaml"]],
    "migrate": [[]],
    "install": [["--print-grants"], []],
    "status": [[], ["--json"]],
    "top": [["--once"]],
    "transactions": [["bot"], ["bot", "--json"]],
    "dead-letters": [[], ["--json"], ["bot"], ["bot", "--json"]],
    "audit": [["--wait", "0s"], ["--wait", "0s", "--json"]],
    "ping": [["bot"], ["sock"]],
    "pause": [["bot"], ["nobody"]],
    "resume": [["bot"]],
    "retry": [["bot"], ["bot", "--split"]],
    "replay": [["bot", "--since", "1h"]],
    "resync": [["bot"]],
    "backfill": [["bot"], ["bot", "--dry-run"]],
    "redrive": [["--appservice", "bot"]],
    "discard": [["--appservice", "bot", "--yes"]],
    "registration": [
        ["for-homeserver", "registration_0.yaml", "-o", "copy.yaml"],
        ["new", "another", "-o", "another.yaml"],
        ["remove", "nobody"],
    ],
    "uninstall": [[], ["--discard-backlog"]],
}


def answers(request: Request) -> tuple[int, dict[str, str], bytes]:
    """Refuses some for ever; the headers and bodies of its answers are canaries, too."""
    status = 400 if POISON.encode() in request.body else 200
    return status, {"X-Canary": CANARY}, ANSWER


@asynccontextmanager
async def stage(
    pg: Connection, database: str, directory: Path
) -> AsyncIterator[tuple[Files, Appservice, Heard]]:
    """Synapse's tables with the capture on them, an appservice, and a homeserver that fails."""
    await attach(pg)
    await pg.execute(UNSTORED)
    for user in USERS:
        await add_device(pg, user)
    async with appservice() as bot, appservice() as failing:
        bot.answer = answers
        failing.answer = lambda _: (500, {"X-Canary": CANARY}, ANSWER)
        files = secret_files(directory, database, bot=bot.url, homeserver=failing.url)
        heard = Heard(secrets=(password_of(database),))
        yield files, bot, heard
    assert heard.leaks() == []


async def from_the_homeserver(pg: Connection, files: Files, one: Homeserver) -> None:
    """By the relay and the capture: what is good, refused, unstorable, broken, or not allowed."""
    for n, word in enumerate(("good", POISON, UNSTORABLE), start=1):
        await send(pg, USERS[0], n, text=f"{word} {CANARY}")
        event = {"event_id": f"${n}", "type": "m", "content": {"body": f"{word} {CANARY}"}}
        body = json.dumps({"events": [event, {"x": CANARY}]}).encode()
        assert await one.push(str(n), body, token=f"{CANARY}-hs-bot") == 200
    for n, broken in enumerate((f"{{{CANARY}", f'{{"events": "{CANARY}"}}', f"\xff{CANARY}")):
        body = broken.encode("latin-1")
        assert await one.push(f"broken{n}", body, token=f"{CANARY}-hs-bot") == 200
    for token in (f"{CANARY}-as-bot", f"{CANARY}-wrong", None):
        path = f"/_matrix/app/v1/transactions/1?access_token={CANARY}"
        await one.ask("PUT", path, token=token, body=b"{}")
    for path in (f"/users/@bot_{CANARY}:x?access_token={CANARY}", f"/{CANARY}", f"/%00{CANARY}"):
        await one.ask("GET", f"/_matrix/app/v1{path}", token=f"{CANARY}-hs-bot")
    await one.ask("PUT", f"/{CANARY}", to=CANARY, headers={"Authorization": f"Basic {CANARY}"})


async def by_ingest(files: Files) -> None:
    """Batches that are good, hold malformed facts, are signed by nobody, or are no JSON."""
    async with sender(files.relay_url) as hands:
        ours = message(to_user_id=USERS[0], content={"body": CANARY})
        taken = await hands.send("1", ours, ours | {"to_user_id": 5}, CANARY)
        assert taken.verdicts[0] == "accepted"
        forged = signed(batch_of("2", ours))
        forged["signatures"]["example.org"]["ed25519:a_1"] = CANARY
        await hands.put("2", json.dumps(forged).encode())
        await hands.put("3", f"{{{CANARY}".encode(), Authorization=f"X-Matrix {CANARY}")


async def by_appservices_that_come(pg: Connection, files: Files) -> None:
    """A websocket and a poll, each with a wrong token first, and with frames that are none."""
    for n, user in enumerate(USERS[1:], start=11):
        await send(pg, user, n, text=CANARY)
    with pytest.raises(aiohttp.WSServerHandshakeError):
        async with connected(files, token=f"{CANARY}-wrong"):
            pass
    async with connected(files, token=f"{CANARY}-as-sock") as sock:
        await sock.until(lambda: CANARY in "".join(sock.frames))
        await sock.websocket.send_str(f"{{{CANARY}")
        await sock.say({"id": CANARY, "command": CANARY, "data": {"token": CANARY}})
    async with polling(files, token=f"{CANARY}-wrong") as stranger:
        assert (await stranger.next(0)).status == 401
    async with polling(files, token=f"{CANARY}-as-asker") as asker:
        given = await asker.next()
        assert CANARY in given.body.decode()
        await asker.ack(f"x{CANARY}")
        assert await asker.ack(given.txn_id) == 200


async def at_the_admin_port(files: Files, heard: Heard) -> None:
    """Every token and none, in every place, for paths that are there and that are not."""
    below = ("reload", "whoami", "appservices", "appservices/bot", "history", "audit", "nothing")
    lists = ("appservices/bot/transactions", "appservices/bot/dead-letters", "openapi.json")
    orders = ("dead-letters/redrive", "dead-letters/discard", "appservices/bot/replay")
    paths = ["/metrics", "/ready", "/health", "/nothing", "/"]
    paths += [f"/_appservice_bridge/v1/{one}" for one in (*below, *lists, *orders)]
    shown = [{"Authorization": f"Bearer {CANARY}-{role}"} for role in (*ROLES, "wrong")]
    async with aiohttp.ClientSession() as session:
        for headers in (*shown, {"Authorization": f"Basic {CANARY}"}, {"Cookie": CANARY}):
            for method in ("GET", "POST"):
                for path in paths:
                    url = URL(f"{files.admin_url}{path}?access_token={CANARY}", encoded=True)
                    async with session.request(
                        method, url, headers=headers, data=f"{{{CANARY}"
                    ) as answer:
                        said = str(sorted(answer.headers.items())) + await answer.text()
                        heard.hear(f"{method} {path}", said)


def by_every_command(files: Files, heard: Heard) -> None:
    """Each with each of its shapes; and with configs that are broken where a secret stands."""
    assert set(COMMANDS) - ELSEWHERE == RUN.keys()
    directory = files.config.parent
    (directory / "homeserver.yaml").write_text(
        f"macaroon_secret_key: {CANARY}\napp_service_config_files: [registration_0.yaml]\n"
    )
    ours = ["--config", str(files.config)]
    for command, shapes in RUN.items():
        for shape in shapes:
            words = [str(directory / word) if word.endswith(".yaml") else word for word in shape]
            heard.run(command, *words, *([] if "new" in shape else ours))
    for broken in broken_configs(files):
        for words in (["check"], ["check", "--json"], ["status"]):
            heard.run(*words, "--config", str(broken))


async def ended(one: WorkerProcess) -> None:
    """The worker gave up, as it does when something is wrong that it cannot name."""
    assert one.process is not None
    assert await asyncio.wait_for(one.process.wait(), 60) == 1


async def test_no_payload_and_no_token_is_in_any_output(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with stage(pg, database, tmp_path) as (files, bot, heard):
        async with worker_process(files) as one, homeserver(files) as speaking:
            await from_the_homeserver(pg, files, speaking)
            await by_ingest(files)
            await by_appservices_that_come(pg, files)
            await bot.until(lambda: len(bot.to_device) >= 2)
            await wait_until(pg, DEAD.format(7))
            await at_the_admin_port(files, heard)
            assert {"dead_letter.payload", "outbox.payload"} <= await where_it_is(pg, CANARY)
            await asyncio.to_thread(by_every_command, files, heard)
            structlog.reset_defaults()
        said = heard.hear("log", one.log.read_text())
    for event in ("transaction.refused", "transaction.buried", "intake.buried"):
        assert event in said


async def test_no_payload_is_in_what_a_worker_says_when_it_ends_by_a_fault(
    pg: Connection, database: str, tmp_path: Path
) -> None:
    async with stage(pg, database, tmp_path) as (files, _, heard):
        logs(files, "json")
        async with worker_process(files) as one:
            await pg.execute(AWAY.format("", "_away"))
            await send(pg, USERS[0], 1, text=CANARY)
            await ended(one)
            await pg.execute(AWAY.format("_away", ""))
            await pg.execute(ODD)
            await one.start(wait=False)
            await ended(one)
        assert "outbox.payload" in await where_it_is(pg, CANARY)
        said = heard.hear("log", one.log.read_text())
    told = [json.loads(line)["event"] for line in said.splitlines() if line.startswith("{")]
    assert "capture.mode" in told
    assert "database fault" in said
    assert "Traceback" in said
