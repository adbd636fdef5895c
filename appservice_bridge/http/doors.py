"""The ports of a process: they stay open while what is behind them is exchanged."""

import errno
import os
import ssl
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

from aiohttp import web

from appservice_bridge.domain.errors import BridgeError

LONGEST_LINE_BYTES: Final = 65_536  # of a request's head; more than any id or alias takes
SHUTDOWN_SECONDS: Final = 5.0


class AddressTakenError(BridgeError):
    """Something else listens where the bridge should, or nobody can there."""

    def __init__(self, which: str, at: str, error: OSError) -> None:
        change = f"change `listen.{which}`"
        if error.errno == errno.EADDRINUSE:
            mend = f"does a worker run already? Else {change}"
            super().__init__(f"listen.{which}: {at} is in use", mend=mend)
        else:
            number = error.errno or 0
            why = os.strerror(number) if number > 0 else error.strerror or str(error)
            super().__init__(f"listen.{which}: cannot listen on {at} ({why})", mend=change)


class CertificateError(BridgeError):
    """The certificate or its key cannot be used; what was read before stays."""

    def __init__(self, section: str, reason: str) -> None:
        super().__init__(f"{section}.tls_cert_file, {section}.tls_key_file: {reason}")


class Certificate:
    """What ports show to those who connect; it can be read again while they are open.

    `section` is that of the config which names the files.

    Raises:
        CertificateError: certificate and key do not load.
    """

    def __init__(self, section: str, cert_file: Path, key_file: Path | None) -> None:
        self._section = section
        self._files = (cert_file, key_file)
        self.context = self._loaded()

    def read_again(self) -> None:
        """New connections get what the files hold now.

        They are tried out first: half a pair would spoil the context that is in use.

        Raises:
            CertificateError: connections get what they got before.
        """
        self._loaded()
        self._load_into(self.context)

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._load_into(context)
        return context

    def _load_into(self, context: ssl.SSLContext) -> None:
        """Without the question that OpenSSL would ask on a terminal, and wait for."""

        def refuse() -> str:
            raise CertificateError(self._section, "the key has a passphrase; give it without")

        try:
            context.load_cert_chain(*self._files, password=refuse)
        except (OSError, ssl.SSLError) as error:
            raise CertificateError(self._section, error.strerror or type(error).__name__) from None


class Door:
    """One listening port.

    Connections outlive a change of what is behind it: closing them would fail a request that a
    client with a kept connection sends in that moment, and few clients repeat a PUT by themselves.
    """

    def __init__(
        self, which: str, host: str, port: int, certificate: Certificate | None = None
    ) -> None:
        self._which = which
        self._host = host
        self._port = port
        self._certificate = certificate
        self._behind: web.AppRunner | None = None
        self._front: web.ServerRunner | None = None

    async def open_to(self, app: web.Application) -> web.AppRunner:
        """Requests that come from now on go to `app`; the port is opened the first time.

        Raises:
            AddressTakenError: it cannot listen.
        """
        runner = web.AppRunner(app)
        await runner.setup()
        self._behind = runner
        if self._front is None:
            await self._listen()
        return runner

    async def leave(self, runner: web.AppRunner) -> None:
        """The app behind it ends; if it is the last one, so does the port.

        Requests in flight at an app that was replaced are still answered by it.
        """
        if self._behind is runner and self._front is not None:
            await self._front.cleanup()
            self._front = self._behind = None
        await runner.cleanup()

    async def _listen(self) -> None:
        server = web.Server(
            self._handle,
            request_factory=self._request,
            access_log=None,
            max_line_size=LONGEST_LINE_BYTES,
        )
        front = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await front.setup()
        tls = None if self._certificate is None else self._certificate.context
        try:
            await web.TCPSite(front, self._host, self._port, ssl_context=tls).start()
        except OSError as error:
            await front.cleanup()
            at = f"{self._host}:{self._port}"
            raise AddressTakenError(self._which, at, error) from error
        self._front = front

    def _request(self, *parts: object) -> web.BaseRequest:
        return self._server().request_factory(*parts)  # type: ignore[arg-type]

    def _handle(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        return self._server().request_handler(request)

    def _server(self) -> web.Server:
        """Of the app behind the door.

        Raises:
            ConnectionResetError: nobody is, for the process ends.
        """
        if self._behind is None or self._behind.server is None:
            raise ConnectionResetError
        return self._behind.server
