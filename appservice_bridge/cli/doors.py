"""The two ports of a process, opened once and led from one worker to the next."""

from aiohttp import web

from appservice_bridge.config.model import ListenOn
from appservice_bridge.http.doors import Certificate, Door


class Doors:
    """Relay and admin; they change together.

    Raises:
        CertificateError: the files that the config names do not go together.
    """

    def __init__(self, listen_on: ListenOn) -> None:
        self._certificate = (
            None
            if listen_on.tls_cert_file is None
            else Certificate(listen_on.tls_cert_file, listen_on.tls_key_file)
        )
        self._doors = [
            Door(which, at.host, at.port, self._certificate)
            for which, at in (("relay", listen_on.relay), ("admin", listen_on.admin))
        ]
        self._behind: dict[web.Application, list[tuple[Door, web.AppRunner]]] = {}

    async def open_to(self, relay: web.Application, admin: web.Application) -> None:
        """Requests that come from now on go to these.

        Raises:
            AddressTakenError: one of them cannot listen.
        """
        behind = self._behind[relay] = []
        for door, app in zip(self._doors, (relay, admin), strict=True):
            behind.append((door, await door.open_to(app)))

    async def leave(self, relay: web.Application) -> None:
        """These are stopped; if nobody else is behind the doors, they are closed."""
        for door, runner in self._behind.pop(relay, []):
            await door.leave(runner)

    def read_certificate_again(self) -> None:
        """New connections get what the files hold now.

        Raises:
            CertificateError: they get what they got before.
        """
        if self._certificate is not None:
            self._certificate.read_again()
