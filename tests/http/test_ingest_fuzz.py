"""Whatever is put to the endpoint is answered 200 or refused with a reason, and no worker falls."""

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

from tests.domain.test_facts import SOUND
from tests.support.appservice import Appservice
from tests.support.ingesting import Sender, batch_of, message, now_ms, one_bot, signed, to_sign

SOME: Final = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
TEXT: Final = st.text(st.characters(), max_size=8)  # with lone surrogates and U+0000
NO_ID: Final = ("", ".", "..")  # in a path they are no name
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def facts(draw: st.DrawFn) -> Any:
    """A fact that is sound, or has one value in it replaced, or is anything."""
    fact = dict(draw(st.sampled_from(list(SOUND.values()))))
    if draw(st.booleans()):
        fact[draw(st.sampled_from([*fact, "more"]) | TEXT)] = draw(JSON)
    return draw(st.just(fact) | JSON)


class Served:
    """A worker in a thread of its own, so that hypothesis need not know of event loops."""

    def __init__(self, directory: Path, database: str) -> None:
        self.started, self.ended = threading.Event(), threading.Event()
        self._directory, self._database = directory, database
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.bot: Appservice
        self.hs: Sender
        self.loop: asyncio.AbstractEventLoop
        self.stop: asyncio.Event

    def __enter__(self) -> "Served":
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

    def put(self, batch_id: str, body: bytes) -> tuple[int, dict[str, Any]]:
        path = f"/_appservice_bridge/v1/facts/{quote(batch_id, safe='', errors='surrogatepass')}"
        connection = http.client.HTTPConnection(urlsplit(self.hs.base_url).netloc, timeout=20)
        try:
            connection.request("PUT", path, body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def still_delivers(self) -> None:
        """The worker is alive: a message that is handed over now arrives."""
        batch = signed(batch_of("marker", message(content={"marker": 1})))
        assert self.put("marker", json.dumps(batch).encode())[0] == 200
        arrived = self.bot.until(
            lambda: any(item["content"].get("marker") for item in self.bot.to_device)
        )
        asyncio.run_coroutine_threadsafe(arrived, self.loop).result(30)
        assert not self.ended.is_set()


@pytest.fixture
def served(tmp_path: Path, database: str) -> Iterator[Served]:
    with Served(tmp_path, database) as one:
        yield one


def refused(answer: dict[str, Any]) -> bool:
    return set(answer) == {"errcode", "error"} and answer["errcode"].startswith("M_")


@pytest.mark.filterwarnings("ignore:Do not use the `random`")
def test_any_signed_batch_is_answered_with_a_verdict_for_each_fact(served: Served) -> None:
    answers: dict[str, tuple[bytes, dict[str, Any]]] = {}
    made_at = now_ms()

    @SOME
    @given(TEXT.filter(lambda text: text not in NO_ID), st.lists(facts(), max_size=4))
    @example("\ud800", [])
    @example("1", [message(content={"\ud83d\udd11": 1})])  # in JSON that is one character
    def put(batch_id: str, some: list[Any]) -> None:
        batch = json.loads(json.dumps(batch_of(batch_id, *some, origin_server_ts=made_at)))
        status, answer = served.put(batch_id, json.dumps(signed(batch)).encode())
        if status != 200:
            assert status in (400, 409), (status, answer)
            assert refused(answer)
            known = answers.get(batch_id)
            assert status == 400 or (known is not None and known[0] != to_sign(batch))
            return
        results = answer["results"]
        assert len(results) == len(some)
        assert all(one["status"] == "accepted" or one["errcode"] for one in results)
        known = answers.setdefault(batch_id, (to_sign(batch), answer))
        assert known == (to_sign(batch), answer)

    put()
    assert answers
    served.still_delivers()
    for request in served.bot.taken:
        json.loads(request.body, parse_constant=pytest.fail)


@pytest.mark.filterwarnings("ignore:Do not use the `random`")
def test_no_body_makes_the_endpoint_fail(served: Served) -> None:
    whole = json.dumps(signed(batch_of("1", message()))).encode()

    @SOME
    @given(st.data())
    def put(data: st.DataObject) -> None:
        at = data.draw(st.integers(min_value=0, max_value=len(whole)))
        length = data.draw(st.integers(min_value=0, max_value=6))
        noise = data.draw(st.binary(max_size=4) | JSON.map(lambda one: json.dumps(one).encode()))
        body = data.draw(st.just(whole[:at] + noise + whole[at + length :]) | st.just(noise))
        status, answer = served.put("1", body)
        assert status == 200 or (status in (400, 401, 403) and refused(answer)), (status, answer)

    put()
    served.still_delivers()
