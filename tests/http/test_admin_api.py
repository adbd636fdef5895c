"""The description of the admin port is that of its routes, and of what they really answer."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import jsonschema
import pytest

from appservice_bridge.cli.context import owners
from appservice_bridge.delivery.history import EVERY_SECONDS
from appservice_bridge.http.admin import ROOT, SECURITY
from appservice_bridge.http.admin_api import description
from appservice_bridge.http.admin_auth import Role, role_needed
from appservice_bridge.routing.announcing import announce, go_live
from appservice_bridge.storage import leases
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.samples import Sample
from tests.support.admin import Port, admin_port
from tests.support.appservice import appservice
from tests.support.bridge import registration, write_files
from tests.support.dead_letters import set_aside
from tests.support.facts import Connection
from tests.support.reloading import with_tokens

ROLES: Final = (None, "viewer", "operator", "admin")
DESCRIBED: Final = description()
FILL: Final = """
set search_path = appservice_bridge;
insert into sealed (appservice_id, number, txn_id, first_position, last_position, items,
                    body_bytes, builder, slots, frame, digest)
values ('bot', 7, 'abx-7', 1, 2, 2, 99, 1, '{}', '{}', ''),
       ('bot', 8, 'abx-8', 3, 3, 1, 99, 1, '{}', '{}', '');
insert into kept (appservice_id, number, txn_id, first_position, last_position, items,
                  payload_bytes)
values ('bot', 6, 'abx-6', 4, 4, 1, 10);
insert into outbox (appservice_id, position, kind, captured_at, payload)
select 'bot', n, 'event', now(), '{}' from generate_series(1, 5) n;
update outbox_head set position = 5, bytes_in = 10 where appservice_id = 'bot';
insert into device_key_state (appservice_id, user_id, device_id, recount, counts)
values ('bot', '@b_1:example.org', 'DEV', false, '{"signed_curve25519": 3}');
"""


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of each."""
    for path, item in DESCRIBED["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield method.upper(), path, operation


@pytest.fixture
async def port(pg: Connection, db: Database, database: str, tmp_path: Path) -> AsyncIterator[Port]:
    """With something of each kind to tell."""
    async with appservice() as bot:
        some = [
            registration("bot", bot.url, users=["@b_.*"]),
            registration("away", "http://127.0.0.1:9"),
            registration("puppets", None),
            registration("socket", "websocket"),
        ]
        kept = {"keep_delivered_seconds": 3600}
        files = with_tokens(write_files(tmp_path, database, some, delivery=kept))
        waiting = await announce(db, owners(files.load()), epoch="test")
        await go_live(db, waiting)
        async with db.transaction() as conn:
            worker = uuid4()
            await leases.renew(conn, worker, name="here:1", lease_seconds=60)
            await leases.claim(conn, worker, ["bot"], most=1)
        await pg.execute(FILL)
        async with admin_port(files, db) as one:
            yield one


def test_it_is_openapi_that_refers_to_what_is_there() -> None:
    assert DESCRIBED["openapi"] == "3.1.0"
    text = json.dumps(DESCRIBED)
    for part in text.split('"#/')[1:]:
        found: Any = DESCRIBED
        for name in part.partition('"')[0].split("/"):
            found = found[name]
        assert found
    for schema in DESCRIBED["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_each_route_is_described_with_the_role_that_it_needs(port: Port) -> None:
    routes = {
        (route.method, route.resource.canonical.removeprefix(ROOT)): role_needed(route.handler)
        for route in port.app.router.routes()
        if route.resource is not None
        and route.resource.canonical.startswith(ROOT)
        and route.method != "HEAD"
    }
    described = {
        (method, path): Role[told["x-role"].upper()] for method, path, told in operations()
    }
    assert routes == described


async def test_each_route_of_the_table_lets_in_who_may_and_nobody_else(port: Port) -> None:
    """Whatever the route answers: who may not is told so before anything else is looked at."""
    for route in port.app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical.replace("{appservice_id}", "nobody")
        needed = role_needed(route.handler)
        for rank, role in enumerate(ROLES):
            answer = await port.ask(route.method, path, role)
            answer.close()
            refusal = 401 if role is None else 403
            if rank < needed:
                assert answer.status == refusal, (route.method, path, role)
            else:
                assert answer.status not in {401, 403}, (route.method, path, role)
                assert answer.status < 500, (route.method, path, role)


async def test_every_answer_tells_browsers_to_be_careful_and_none_is_for_other_sites(
    port: Port,
) -> None:
    for path in ("/health", ROOT + "/appservices", ROOT + "/nothing", ROOT + "/events"):
        answer = await port.ask("GET", path)
        answer.close()
        assert SECURITY.items() <= dict(answer.headers).items()
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def valid(port: Port, method: str, path: str, body: Any = None, *, at: str = "") -> Any:
    """An answer that is as it is described, under the path `at` if that is another."""
    answer = await port.ask(method, ROOT + path, body=body)
    told = await answer.json()
    responses = DESCRIBED["paths"][at or path][method.lower()]["responses"]
    response = responses.get(str(answer.status), responses["default"])
    name = response["$ref"].rpartition("/")[2]
    schema = DESCRIBED["components"]["responses"][name]["content"]["application/json"]["schema"]
    whole = {**schema, "components": DESCRIBED["components"]}
    jsonschema.validate(told, whole, cls=jsonschema.Draft202012Validator)
    assert "SECRET" not in json.dumps(told)
    return told


async def test_what_is_told_is_as_it_is_described(port: Port, pg: Connection) -> None:
    await set_aside(pg, 1)
    for tick in range(2):
        port.history.add(
            [
                Sample(
                    appservice_id="bot",
                    at=1e9 + tick * EVERY_SECONDS,
                    waiting=1,
                    delivered=tick,
                    failed_attempts=0,
                    oldest_seconds=None,
                )
            ]
        )
    one = "/appservices/{appservice_id}"
    for path in ("/whoami", "/appservices", "/audit"):
        assert (await valid(port, "GET", path))["version"] == 1
    assert len((await valid(port, "GET", "/history?appservice=bot", at="/history"))["points"]) == 2
    detail = await valid(port, "GET", "/appservices/bot", at=one)
    assert (detail["in_flight"]["txn_id"], detail["devices"][0]["low"]) == ("abx-7", True)
    assert detail["per_second"] == 0.1
    await valid(port, "GET", "/appservices/puppets", at=one)
    sent = await valid(port, "GET", "/appservices/bot/transactions", at=one + "/transactions")
    assert [t["state"] for t in sent["transactions"]] == ["waits", "in_flight", "acknowledged"]
    letters = await valid(port, "GET", "/appservices/bot/dead-letters", at=one + "/dead-letters")
    assert len(letters["dead_letters"]) == 1
    told = await valid(port, "GET", "/appservices/nobody", at=one)
    assert told["errcode"] == "M_NOT_FOUND"


async def test_what_is_done_is_told_as_it_is_described(port: Port, pg: Connection) -> None:
    letters = [await set_aside(pg, n, redrivable=n < 2, payload=b"{}") for n in range(3)]
    for verb, body in {
        "pause": None,
        "retry": None,
        "resume": None,
        "ping": None,
        "replay": {"since_seconds": 60},
        "resync": None,
        "backfill": {"dry_run": True},
    }.items():
        path = "/appservices/{}/" + verb
        at = path.format("{appservice_id}")
        told = await valid(port, "POST", path.format("bot"), body, at=at)
        assert ("errcode" in told) == (verb in {"retry", "resync", "backfill"}), told
    assert (
        await valid(port, "POST", "/appservices/away/ping", at="/appservices/{appservice_id}/ping")
    )["outcome"] == "not_answered"
    some = {"ids": [letters[0], letters[2], str(uuid4())]}
    told = await valid(port, "POST", "/dead-letters/redrive", some)
    assert [len(told[name]) for name in ("redriven", "refused", "unknown")] == [1, 1, 1]
    told = await valid(port, "POST", "/dead-letters/discard", some)
    assert [len(told[name]) for name in ("discarded", "unknown")] == [1, 2]
    done = (await valid(port, "GET", "/audit"))["entries"]
    assert {one["address"] for one in done} == {"127.0.0.1"}
    assert [one["action"] for one in done] == [
        "discard",
        "redrive",
        "replay",
        "ping",
        "resume",
        "pause",
    ]


async def test_anyone_may_read_the_description(port: Port) -> None:
    answer = await port.ask("GET", ROOT + "/openapi.json", role=None)
    assert (answer.status, await answer.json()) == (200, DESCRIBED)
