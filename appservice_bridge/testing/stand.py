"""What stands between the bridge and a bot: writes down, fails and holds, else passes on."""

import asyncio
import hmac
import inspect
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import aiohttp
from aiohttp import web

from appservice_bridge.testing.seen import Seen, Transaction, parsed

Handler: TypeAlias = Callable[[Transaction], "Awaitable[int | None] | int | None"]
TRANSACTIONS: Final = "/_matrix/app/v1/transactions/"
PING: Final = "/_matrix/app/v1/ping"
PASSED_ON: Final = ("Authorization", "Content-Type")
BOT_ANSWERS_WITHIN: Final = aiohttp.ClientTimeout(total=300)
LARGEST_BODY_BYTES: Final = 64 * 1024 * 1024


@dataclass(slots=True)
class Stand:
    """One appservice's place; the bridge sends to it, whoever the bot is.

    Attributes:
        handler: takes transactions in this process; its result is the status, None is 200.
        loop: on which an async handler runs; None: on that of the stand.
        url: where the bot is, if it is not a handler.
        failures: statuses that the next attempts are answered without the bot.
        open: unset while attempts are held.
        errors: what a handler raised.
    """

    hs_token: str = field(repr=False)
    handler: Handler | None = None
    loop: asyncio.AbstractEventLoop | None = None
    url: str | None = None
    seen: Seen = field(default_factory=Seen)
    failures: list[int] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    errors: list[str] = field(default_factory=list)
    _running: "set[Future[Any]]" = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.open.set()

    def retire(self) -> None:
        """Nobody looks any more: everything is taken, and nothing is kept."""
        self.handler = self.loop = self.url = None
        self.seen = Seen()
        self.failures.clear()
        self.open.set()
        for running in set(self._running):
            running.cancel()

    async def answer(self, request: web.Request, path: str, http: aiohttp.ClientSession) -> Any:
        """What the bridge gets for one request below the appservice's url."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.hs_token.encode()):
            return _refused(403, "M_FORBIDDEN")
        if not path.startswith(TRANSACTIONS) or request.method != "PUT":
            return await self._ask(request, path, http)
        return await self._transaction(request, path, http)

    async def _transaction(self, request: web.Request, path: str, http: Any) -> web.Response:
        raw = await request.read()
        body = parsed(raw)
        seen = self.seen
        number = await seen.begin(path.removeprefix(TRANSACTIONS), body)
        if not self.open.is_set():
            await seen.hold(number)
            await self.open.wait()
            seen.held.discard(number)
            if request.transport is None or request.transport.is_closing():
                await seen.end(number, None, by="hold; the bridge hung up", body=body)
                return _refused(503, "M_UNKNOWN")  # to nobody
        if self.failures:
            status = self.failures.pop(0)
            await seen.end(number, status, by="fail_next", body=body)
            return _refused(status, "M_UNKNOWN")
        transaction = Transaction(txn_id=seen.attempts[number].txn_id, body=body)
        answer = await self._give(transaction, request, path, http)
        await seen.end(number, answer.status, by="the bot", body=body)
        return answer

    async def _give(
        self, transaction: Transaction, request: web.Request, path: str, http: Any
    ) -> web.Response:
        if self.url is not None:
            return await self._pass_on(self.url, request, path, http)
        if self.handler is None:
            return web.json_response({})
        try:
            status = await self._handled(self.handler, transaction)
        except Exception:
            self.errors.append(traceback.format_exc())
            return _refused(500, "M_UNKNOWN")
        return web.json_response({}, status=200 if status is None else status)

    async def _handled(self, handler: Handler, transaction: Transaction) -> int | None:
        if self.loop is None:
            done = handler(transaction)
            return await done if inspect.isawaitable(done) else done
        if not self.loop.is_running():
            return 503  # between two steps of a test that is at its end
        future = asyncio.run_coroutine_threadsafe(_called(handler, transaction), self.loop)
        self._running.add(future)
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._running.discard(future)

    async def _ask(self, request: web.Request, path: str, http: Any) -> web.Response:
        if self.url is not None:
            return await self._pass_on(self.url, request, path, http)
        return web.json_response({}) if path == PING else _refused(404, "M_NOT_FOUND")

    async def _pass_on(
        self, url: str, request: web.Request, path: str, http: aiohttp.ClientSession
    ) -> web.Response:
        query = f"?{request.query_string}" if request.query_string else ""
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        try:
            async with http.request(
                request.method,
                f"{url.rstrip('/')}{path}{query}",
                data=await request.read(),
                headers=headers,
                timeout=BOT_ANSWERS_WITHIN,
                allow_redirects=False,
            ) as answer:
                body = await answer.read()
                return web.Response(
                    status=answer.status, body=body, content_type=answer.content_type
                )
        except (aiohttp.ClientError, TimeoutError):
            return _refused(502, "M_UNKNOWN")


@dataclass(slots=True)
class Stands:
    """All stands of a stage behind one port; each below a path of its own."""

    by_name: dict[str, Stand] = field(default_factory=dict)
    _http: aiohttp.ClientSession | None = field(default=None, init=False)

    def app(self) -> web.Application:
        """Serve them."""
        app = web.Application(client_max_size=LARGEST_BODY_BYTES)
        app.router.add_route("*", "/{name}{path:/.*}", self._answer)
        app.cleanup_ctx.append(self._session)
        return app

    async def _session(self, _app: web.Application) -> Any:
        async with aiohttp.ClientSession(auto_decompress=False) as self._http:
            yield

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        stand = self.by_name.get(request.match_info["name"])
        if stand is None:
            return _refused(404, "M_NOT_FOUND")
        path = request.rel_url.raw_path.removeprefix(f"/{request.match_info['name']}")
        answer: web.Response = await stand.answer(request, path, self._http)  # type: ignore[arg-type]
        return answer


async def _called(handler: Handler, transaction: Transaction) -> int | None:
    done = handler(transaction)
    return await done if inspect.isawaitable(done) else done


def _refused(status: int, errcode: str) -> web.Response:
    return web.json_response({"errcode": errcode}, status=status)
