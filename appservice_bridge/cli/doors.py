"""The two ports of a process, opened once and led from one worker to the next."""

from aiohttp import web

from appservice_bridge.config.model import Admin, Config, ListenOn
from appservice_bridge.http.doors import Certificate, Door


class Doors:
    """Relay and admin; they change together.

    Raises:
        CertificateError: the files that the config names do not go together.
    """

    def __init__(self, config: Config) -> None:
        listen_on = config.listen
        both = _certificate("listen", listen_on)
        own = _certificate("admin", config.admin) or both
        self._certificates = {one for one in (both, own) if one is not None}
        self._doors = [
            Door(which, at.host, at.port, certificate)
            for which, at, certificate in (
                ("relay", listen_on.relay, both),
                ("admin", listen_on.admin, own),
            )
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
        for certificate in self._certificates:
            certificate.read_again()


def _certificate(section: str, named: ListenOn | Admin) -> Certificate | None:
    if named.tls_cert_file is None:
        return None
    return Certificate(section, named.tls_cert_file, named.tls_key_file)
