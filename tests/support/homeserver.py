"""A real Synapse with appservices, its Postgres, and the bridge beside it as its own process."""

import asyncio
import json
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import psycopg2
import yaml

from appservice_bridge.config.homeserver_copy import homeserver_copy
from appservice_bridge.config.registrations import parse_registration
from appservice_bridge.dev.bridge_process import BridgeProcess
from appservice_bridge.dev.parts import Part, launched
from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.dev.process import ChildDiedError
from appservice_bridge.dev.synapse import Synapse, SynapseSettings
from appservice_bridge.dev.synapse_users import register_user
from appservice_bridge.domain.registration import relay_path
from tests.support.bridge import registration

SERVER: Final = "lab.test"
SECRET: Final = "a shared secret of tests"
CLIENT: Final = "/_matrix/client/v3"
JsonDict = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """One appservice: its registration as the bridge reads it, and the port it may listen on."""

    registration: JsonDict
    port: LoopbackPort

    @property
    def id(self) -> str:
        return str(self.registration["id"])

    @property
    def as_token(self) -> str:
        return str(self.registration["as_token"])


def registered(
    appservice_id: str,
    *,
    users: Sequence[str] = (),
    exclusive: bool = True,
    listens: bool = True,
    **more: object,
) -> Registered:
    """A registration; `listens` False makes its url null."""
    port = LoopbackPort()
    url = port.url if listens else None
    document = registration(appservice_id, url, users=users, exclusive=exclusive)
    return Registered(registration=document | more, port=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user with one device."""

    user_id: str
    device_id: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Homeserver:
    """All of it while it runs; `bridge` is there even where it was not started."""

    directory: Path
    postgres: EmbeddedPostgres
    synapse: Synapse
    bridge: BridgeProcess
    appservices: Mapping[str, Registered]
    dsn: str

    @property
    def url(self) -> str:
        return self.synapse.url

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the homeserver's database, which is the bridge's, too."""
        connection = psycopg2.connect(self.dsn)
        connection.autocommit = True
        try:
            cursor = connection.cursor()
            cursor.execute(statement, parameters)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found
        finally:
            connection.close()

    def execute(self, statement: str, *parameters: object) -> None:
        """Change something in the homeserver's database, as the homeserver might."""
        _execute(self.dsn, statement, *parameters)

    async def start_bridge(self) -> None:
        """Start the worker and wait until it can store and deliver."""
        await launched(self.bridge)


@contextmanager
def postgres_on_disk(
    binaries: Path | None = None, /, **settings: str
) -> Iterator[EmbeddedPostgres]:
    """A Postgres that really syncs, in a directory that is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="appservice-bridge-homeserver-"))
    try:
        with EmbeddedPostgres(directory / "postgres", settings, binaries=binaries) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def homeserver(
    postgres: EmbeddedPostgres,
    appservices: Sequence[Registered],
    *,
    name: str = "synapse",
    native: bool = False,
    config: Mapping[str, Any] | None = None,
    python: str = sys.executable,
    kind: type[Synapse] = Synapse,
) -> Iterator[Homeserver]:
    """Start Synapse on a new database; with the bridge, unless it is to deliver `native`ly."""
    directory = postgres.data_dir.with_name(name)
    directory.mkdir()
    _execute(postgres.dsn(), f"create database {name} template template0")
    bridge = BridgeProcess(directory / "bridge.yaml", directory / "bridge.log")
    relay = None if native else bridge.relay.url
    settings = SynapseSettings(
        directory=directory / "synapse",
        server_name=SERVER,
        database=postgres.dsn(name),
        registration_shared_secret=SECRET,
        registrations=write_registrations(directory, appservices, relay),
        native_encryption=native,
        python=python,
        log_level="WARNING",
    )
    made = Homeserver(
        directory=directory,
        postgres=postgres,
        synapse=kind(settings),
        bridge=bridge,
        appservices={each.id: each for each in appservices},
        dsn=postgres.dsn(name),
    )
    _write_bridge_config(made, config or {})
    parts: list[Part] = [made.synapse] if native else [made.synapse, made.bridge]
    try:
        asyncio.run(_start(made, parts))
        yield made
    except ChildDiedError as died:
        died.add_note(died.log.read_text()[-4000:])  # the directory will be gone
        raise
    finally:
        for part in reversed(parts):
            part.stop()


async def _start(of: Homeserver, parts: Sequence[Part]) -> None:
    for part in parts:
        if part is of.bridge:
            await of.bridge.prepare("migrate")
            await of.bridge.prepare("install")
        async with asyncio.timeout(120):  # a homeserver with workers, on a busy machine
            await launched(part)


def _execute(dsn: str, statement: str, *parameters: object) -> None:
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    try:
        connection.cursor().execute(statement, parameters)
    finally:
        connection.close()


def write_registrations(
    directory: Path, appservices: Sequence[Registered], relay: str | None
) -> list[Path]:
    """Write both copies of each registration; returns the homeserver's."""
    copies = []
    for number, each in enumerate(appservices):
        text = json.dumps(each.registration)
        (directory / f"registration_{number}.yaml").write_text(text)
        reading = parse_registration(text, file=each.id)
        assert reading.document is not None, reading.faults
        if relay is not None and each.registration["url"] is not None:
            text = homeserver_copy(reading.document, url=relay + relay_path(each.id))
        copies.append(directory / f"homeserver_copy_{number}.yaml")
        copies[-1].write_text(text)
    return copies


def _write_bridge_config(of: Homeserver, more: Mapping[str, Any]) -> None:
    document: JsonDict = {
        "database": of.dsn,
        "homeserver": {"kind": "synapse", "server_name": SERVER, "url": of.url},
        "listen": {"relay": of.bridge.relay.address, "admin": of.bridge.admin.address},
        "registrations": ["registration_*.yaml"],
        "delivery": {"backoff": {"first_seconds": 0.1, "ceiling_seconds": 1.0}},
    }
    for key, value in more.items():
        section = document.get(key)
        document[key] = section | value if isinstance(section, dict) else value
    of.bridge.config.write_text(yaml.safe_dump(document))


class RefusedError(Exception):
    """The homeserver answered with an error."""

    def __init__(self, method: str, path: str, status: int, answer: object) -> None:
        super().__init__(f"{method} {path}: {status} {answer}")
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Speaks to the homeserver as whoever's token it is given."""

    of: Homeserver
    http: aiohttp.ClientSession

    async def call(
        self, method: str, path: str, token: str, body: JsonDict | None = None
    ) -> JsonDict:
        """One request below /_matrix/client/v3.

        Raises:
            RefusedError: anything but 200.
        """
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{self.of.url}{CLIENT}{path}"
        async with self.http.request(method, url, json=body, headers=headers) as response:
            answer: JsonDict = await response.json()
            if response.status != 200:
                raise RefusedError(method, path, response.status, answer)
            return answer

    async def person(self, localpart: str) -> Account:
        """Register an ordinary user."""
        answer = await register_user(
            self.of.url, shared_secret=SECRET, localpart=localpart, password="p"
        )
        return _account(answer)

    async def people(self, localpart: str, count: int) -> list[Account]:
        """Register so many ordinary users."""
        return await _some(self.person(f"{localpart}{number}") for number in range(count))

    async def puppet(self, appservice_id: str, localpart: str, *, device: str = "DEV") -> Account:
        """Register a user of an appservice, with one device, as the appservice does."""
        body = {
            "type": "m.login.application_service",
            "username": localpart,
            "device_id": device,
        }
        token = self.of.appservices[appservice_id].as_token
        return _account(await self.call("POST", "/register", token, body))

    async def puppets(self, appservice_id: str, localpart: str, count: int) -> list[Account]:
        """Register so many users of an appservice."""
        names = [f"{localpart}{number}" for number in range(count)]
        return await _some(self.puppet(appservice_id, name) for name in names)

    async def log_in(self, appservice_id: str, user_id: str, device: str) -> Account:
        """Make another device of an appservice's user."""
        body = {
            "type": "m.login.application_service",
            "identifier": {"type": "m.id.user", "user": user_id},
            "device_id": device,
        }
        token = self.of.appservices[appservice_id].as_token
        return _account(await self.call("POST", "/login", token, body))

    async def send(
        self, sender: Account, messages: Mapping[str, Mapping[str, JsonDict]], kind: str = "m.test"
    ) -> None:
        """Send to-device messages: user, device, content."""
        path = f"/sendToDevice/{quote(kind)}/{uuid.uuid4().hex}"
        await self.call("PUT", path, sender.token, {"messages": messages})

    async def say(self, sender: Account, room_id: str, content: JsonDict) -> str:
        """Send an encrypted room event; returns its id."""
        path = f"/rooms/{quote(room_id)}/send/m.room.encrypted/{uuid.uuid4().hex}"
        return str((await self.call("PUT", path, sender.token, content))["event_id"])

    async def encrypted_room(self, owner: Account, members: Sequence[Account]) -> str:
        """Make a room where encryption is on and everyone has joined."""
        encryption = {
            "type": "m.room.encryption",
            "state_key": "",
            "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        }
        body = {
            "preset": "private_chat",
            "initial_state": [encryption],
            "invite": [member.user_id for member in members],
        }
        room_id = str((await self.call("POST", "/createRoom", owner.token, body))["room_id"])
        for member in members:
            await self.call("POST", f"/join/{quote(room_id)}", member.token, {})
        return room_id


def _account(answer: JsonDict) -> Account:
    return Account(
        user_id=answer["user_id"], device_id=answer["device_id"], token=answer["access_token"]
    )


async def _some(accounts: Any) -> list[Account]:
    """A few at a time: the homeserver has one process."""
    waiting = list(accounts)
    done: list[Account] = []
    while waiting:
        batch, waiting = waiting[:6], waiting[6:]
        done += await asyncio.gather(*batch)
    return done
