"""A newcomer with an existing Synapse does what docs/operators.md says, block by block."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import psycopg2
import pytest
import yaml

from appservice_bridge.dev.echo_bot import BotSettings, EchoBot
from appservice_bridge.dev.local_server import serving
from appservice_bridge.dev.parts import launched
from appservice_bridge.dev.person import Person, person
from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.dev.postgres import EmbeddedPostgres
from appservice_bridge.dev.synapse import Synapse, SynapseSettings
from appservice_bridge.dev.synapse_users import register_user
from tests.support.dump import schema_dump
from tests.support.guide import REPOSITORY, Machine, blocks, machine
from tests.support.homeserver import postgres_on_disk

GUIDE: Final = REPOSITORY / "docs" / "operators.md"
SERVER: Final = "existing.test"
BOT: Final = f"@bot:{SERVER}"
ALICE: Final = f"@alice:{SERVER}"
SECRET: Final = "a shared secret of tests"
FIVE_MINUTES: Final = 300.0
PATIENCE_SECONDS: Final = 120.0
REGISTRATION: Final[dict[str, Any]] = {
    "id": "my-bot",
    "as_token": "as_bot",
    "hs_token": "hs_bot",
    "sender_localpart": "bot",
    "rate_limited": False,
    "namespaces": {"users": [{"exclusive": True, "regex": f"@bot:{SERVER}"}]},
    "org.matrix.msc3202": True,
    "io.element.msc4190": True,
}


class ExistingSynapse(Synapse):
    """Whose files are written once: a restart reads what is there, whoever changed it."""

    def _write_files(self) -> Path:
        config = self.settings.directory / "homeserver.yaml"
        return config if config.exists() else super()._write_files()


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """A homeserver and its appservice, as they were before anybody read the guide."""

    postgres: EmbeddedPostgres
    synapse: Synapse
    registration: Path

    @property
    def homeserver_yaml(self) -> Path:
        return self.synapse.settings.directory / "homeserver.yaml"

    def state(self) -> dict[str, object]:
        """All that has to be the same again at the end."""
        mode = self.registration.stat().st_mode
        return {
            "database": schema_dump(self.postgres, self.postgres.dsn("synapse")),
            "roles": self.rows("select rolname from pg_roles order by 1"),
            "homeserver.yaml": self.homeserver_yaml.read_bytes(),
            "registration": (self.registration.read_bytes(), mode),
        }

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.postgres.dsn("synapse"))
        try:
            cursor = connection.cursor()
            cursor.execute(statement)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found
        finally:
            connection.close()

    async def until_settled(self) -> None:
        """Wait until a new Synapse makes no more indexes of its own."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.rows("select update_name from background_updates"):
                await asyncio.sleep(0.2)


def create_database(server: EmbeddedPostgres) -> str:
    """A role and a database as Synapse's installation guide makes them; how Synapse connects."""
    connection = psycopg2.connect(server.dsn())
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("create role synapse_user login password 'x'")
    cursor.execute("create database synapse owner synapse_user template template0")
    connection.close()
    return f"postgresql://synapse_user:x@{server.port.address}/synapse?sslmode=disable"


@asynccontextmanager
async def existing(directory: Path, bot_port: LoopbackPort) -> AsyncIterator[Before]:
    """A Synapse that runs, with an appservice that it calls directly."""
    registration = directory / "my-bot.yaml"
    registration.write_text(yaml.safe_dump(REGISTRATION | {"url": bot_port.url}))
    registration.chmod(0o640)
    with postgres_on_disk() as server:
        settings = SynapseSettings(
            directory=directory / "synapse",
            server_name=SERVER,
            database=create_database(server),
            registration_shared_secret=SECRET,
            registrations=[registration],
            log_level="WARNING",
            extra={"background_updates": {"sleep_enabled": False}},
        )
        synapse = ExistingSynapse(settings)
        try:
            await launched(synapse)
            yield Before(postgres=server, synapse=synapse, registration=registration)
        finally:
            synapse.stop()


@asynccontextmanager
async def encrypted_bot(homeserver_url: str, port: LoopbackPort) -> AsyncIterator[None]:
    """The appservice: it joins where it is invited, and echoes what it can decrypt."""
    settings = BotSettings(
        homeserver_url=homeserver_url, user_id=BOT, as_token="as_bot", hs_token="hs_bot"
    )
    async with aiohttp.ClientSession() as http:
        bot = EchoBot(settings, http)
        async with serving(bot.app(), port):
            await bot.announce()
            work = asyncio.create_task(bot.run())
            yield
            work.cancel()


def yours(of: Before, at: Path) -> str:
    """What this reader writes into the one block that every reader changes."""
    relay, admin = LoopbackPort(), LoopbackPort()
    relay.release()
    admin.release()
    psql = f"{of.postgres.cluster.program('psql')} --quiet --set ON_ERROR_STOP=1"
    return f"""
export CONF={at / "conf"} UNITS={at / "units"}
export HOMESERVER={of.homeserver_yaml} REGISTRATION={of.registration}
export SERVER_NAME={SERVER} SYNAPSE_URL={of.synapse.url}
export DATABASE={of.postgres.port.address}/synapse
export RELAY={relay.address} ADMIN={admin.address}
export APPSERVICE_BRIDGE_CONFIG=$CONF/bridge.yaml
owner_psql() {{ {psql} --dbname '{of.postgres.dsn("synapse")}' "$@"; }}
restart_synapse() {{ systemctl restart matrix-synapse; }}
"""


async def talk(alice: Person) -> None:
    """An encrypted message goes to the bot, and comes back."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        room_id = await alice.make_encrypted_room(BOT)
        await alice.see_join(room_id, BOT)
        await alice.say(room_id, "hello")
        await alice.hear(room_id, BOT, "hello")


async def attach(reader: Machine, guide: dict[str, str]) -> float:
    """Run the guide's first half; the seconds it took."""
    began = time.monotonic()
    await reader.run({title: text for title, text in guide.items() if title.startswith("attach")})
    return time.monotonic() - began


def test_every_block_of_the_guide_that_can_be_run_is_run() -> None:
    titles = list(blocks(GUIDE))
    assert titles[0] == "yours"
    assert {title.partition(" ")[0] for title in titles[1:]} == {"attach", "detach"}
    assert titles[1:] == sorted(titles[1:])


@pytest.mark.timeout(900)
async def test_a_newcomer_attaches_in_five_minutes_and_detaches_without_a_trace(
    tmp_path: Path,
) -> None:
    guide, port = blocks(GUIDE), LoopbackPort()
    async with existing(tmp_path, port) as of, encrypted_bot(of.synapse.url, port):

        async def restart() -> None:
            of.synapse.stop()
            await launched(of.synapse)

        await register_user(of.synapse.url, shared_secret=SECRET, localpart="alice", password="p")
        await of.until_settled()
        before = of.state()
        async with machine(tmp_path, yours=yours(of, tmp_path), restart_synapse=restart) as reader:
            seconds = await attach(reader, guide)
            print(f"attached in {seconds:.1f} s")
            assert seconds < FIVE_MINUTES
            assert of.state() != before
            async with person(of.synapse.url, ALICE, "p") as alice:
                await talk(alice)
                titled = {name: text for name, text in guide.items() if name.startswith("detach")}
                await reader.run(titled)
                room_id = await alice.make_encrypted_room(BOT)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await alice.see_join(room_id, BOT)  # without the bridge: as it was before
            await of.until_settled()
            assert of.state() == before
            assert not reader.conf.exists()
            assert list(reader.units.iterdir()) == []
