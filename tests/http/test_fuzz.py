"""Whatever is pushed under the right token is answered 200, and no worker falls over it."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.appservice import Appservice
from tests.support.relaying import TRANSACTIONS, Homeserver, one_bot

SOME: Final = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
TEXT: Final = st.text(max_size=12)
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
FIELDS: Final = st.sampled_from(
    ["events", "ephemeral", "de.sorunome.msc2409.ephemeral", "to_device", "device_lists", "x"]
)
EVENTS: Final = st.dictionaries(st.sampled_from(["event_id", "type", "content"]), JSON) | JSON
OBJECTS: Final = st.dictionaries(FIELDS, st.lists(EVENTS, max_size=3) | JSON, max_size=4)
TEXTS: Final = OBJECTS.map(lambda value: json.dumps(value).encode())


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A transaction with some bytes of it gone or replaced."""
    whole = draw(TEXTS)
    at = draw(st.integers(min_value=0, max_value=len(whole)))
    length = draw(st.integers(min_value=0, max_value=4))
    return whole[:at] + draw(st.binary(max_size=4)) + whole[at + length :]


BODIES: Final = TEXTS | damaged() | st.binary(max_size=40)


class Relayed:
    """A worker in a thread of its own, so that hypothesis need not know of event loops."""

    def __init__(self, directory: Path, database: str) -> None:
        self.started, self.ended = threading.Event(), threading.Event()
        self._directory, self._database = directory, database
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.bot: Appservice
        self.hs: Homeserver
        self.loop: asyncio.AbstractEventLoop
        self.stop: asyncio.Event

    def __enter__(self) -> "Relayed":
        self._thread.start()
        assert self.started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self._thread.join(30)

    async def _run(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with one_bot(self._directory, self._database) as (self.bot, self.hs):
                self.started.set()
                await self.stop.wait()
        finally:
            self.ended.set()

    def ask(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection(urlsplit(self.hs.relay_url).netloc, timeout=20)
        try:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            json.loads(answer.read() or b"{}")
            return answer.status
        finally:
            connection.close()

    def still_delivers(self) -> None:
        """The worker is alive: an event that is pushed now arrives."""
        body = b'{"events":[{"event_id":"$a marker","marker":1}]}'
        headers = {"Authorization": "Bearer hs_bot"}
        assert self.ask("PUT", f"/appservice/bot{TRANSACTIONS}marker", body, headers) == 200
        arrived = self.bot.until(lambda: any(e.get("marker") == 1 for e in self.bot.events))
        asyncio.run_coroutine_threadsafe(arrived, self.loop).result(20)
        assert not self.ended.is_set()


@pytest.fixture
def relayed(tmp_path: Path, database: str) -> Iterator[Relayed]:
    with Relayed(tmp_path, database) as one:
        yield one


@pytest.mark.filterwarnings("ignore:Do not use the `random`")
def test_an_authenticated_transaction_is_answered_200_whatever_is_in_it(relayed: Relayed) -> None:
    @SOME
    @given(TEXT.filter(bool), BODIES, st.booleans(), st.sampled_from(["/_matrix/app/v1", ""]))
    @example("1", b'{"events":[{"event_id":"\\ud800"}]}', True, "")
    def push(txn_id: str, body: bytes, in_query: bool, prefix: str) -> None:
        target = f"/appservice/bot{prefix}/transactions/{quote(txn_id, safe='')}"
        headers = {} if in_query else {"Authorization": "Bearer hs_bot"}
        target += "?access_token=hs_bot" if in_query else ""
        assert relayed.ask("PUT", target, body, headers) == 200

    push()
    relayed.still_delivers()
    for request in relayed.bot.taken:
        items: dict[str, Any] = json.loads(request.body)
        assert all(isinstance(item, dict) for array in items.values() for item in array)


@pytest.mark.filterwarnings("ignore:Do not use the `random`")  # it is the worker that does
def test_no_path_token_or_body_makes_the_relay_fail(relayed: Relayed) -> None:
    printable = st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E))
    starts = st.sampled_from(
        ["/", "/appservice/bot", f"/appservice/bot{TRANSACTIONS}", "/appservice/bot/_matrix/app/"]
    )
    tokens = st.sampled_from([None, "Bearer hs_bot", "Bearer wrong", "Basic eDp5"]) | printable.map(
        "Bearer {}".format
    )

    @SOME
    @given(st.sampled_from(["PUT", "POST", "GET", "PATCH"]), starts, printable, tokens, BODIES)
    @example("PUT", f"/appservice/bot{TRANSACTIONS}", "%", "Bearer hs_bot", b"")
    @example("GET", "/appservice/bot/users/%00%FF%2e%2E/../..", "?&=%&access_token", None, b"")
    @example("POST", "/appservice/bot/_matrix/app/v1/ping", "", "Bearer hs_bot", b'{"a":NaN}')
    def ask(method: str, start: str, rest: str, token: str | None, body: bytes) -> None:
        headers = {} if token is None else {"Authorization": token}
        status = relayed.ask(method, start + rest, body, headers)
        assert status in (200, 401, 403, 404, 405), status
        txn_id = rest.split("?")[0].split("#")[0]
        if method == "PUT" and start.endswith(TRANSACTIONS) and token == "Bearer hs_bot" and txn_id:
            assert status == 200 or "access_token" in rest

    ask()
    relayed.still_delivers()
