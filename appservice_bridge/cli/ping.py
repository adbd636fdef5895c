"""`ping`: whether an appservice can be reached from here."""

from typing import Annotated

import aiohttp
import typer

from appservice_bridge.cli.appservice_ids import AppserviceArgument
from appservice_bridge.cli.check import ConfigOption
from appservice_bridge.cli.context import author, finished, loaded, with_database
from appservice_bridge.config.loading import Loaded
from appservice_bridge.delivery import operating
from appservice_bridge.delivery import ping as asking
from appservice_bridge.delivery.ping import Answered, NotAnswered, Pinged
from appservice_bridge.domain.errors import BridgeError
from appservice_bridge.domain.registration import Registration
from appservice_bridge.storage.database import Database
from appservice_bridge.storage.orders import UnknownAppserviceError


class NotReachedError(BridgeError):
    """The appservice did not take a ping."""

    def __init__(self, appservice_id: str, pinged: NotAnswered) -> None:
        status = f" (status {pinged.status})" if pinged.status else ""
        super().__init__(f"{appservice_id}: {pinged.errcode}{status}: {pinged.mend}")


def ping(
    appservice_id: AppserviceArgument,
    config: ConfigOption,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=600, metavar="SECONDS", help="Longest wait.")
    ] = 10.0,
) -> None:
    """Ask an appservice whether it is there, at the url and with the token in its registration.

    One that answers is sent at once what it is owed. Ends 1 with a code of the specification:
    M_URL_NOT_SET, M_CONNECTION_FAILED, M_CONNECTION_TIMEOUT, or M_BAD_STATUS with the status.
    """
    of = loaded(config)
    answered = finished(_ask(of, appservice_id, timeout))
    print(f"{appservice_id} answered {answered.status} in {answered.milliseconds:.0f} ms")

    async def work(database: Database) -> None:
        await operating.answered(database, appservice_id, by=author())

    finished(with_database(of, work))


async def _ask(of: Loaded, appservice_id: str, timeout_seconds: float) -> Answered:
    registration = _registration(of, appservice_id)
    async with aiohttp.ClientSession() as session:
        pinged: Pinged = await asking.ping(session, registration, timeout_seconds=timeout_seconds)
    if isinstance(pinged, NotAnswered):
        raise NotReachedError(appservice_id, pinged)
    return pinged


def _registration(of: Loaded, appservice_id: str) -> Registration:
    for one in of.registrations:
        if one.id == appservice_id:
            return one
    raise UnknownAppserviceError(appservice_id, [one.id for one in of.registrations])
