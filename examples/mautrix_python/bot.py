"""A bot on mautrix-python whose encryption is that of the mautrix bridges, in appservice mode.

Runs in an environment with mautrix, python-olm, unpaddedbase64, pycryptodome and aiosqlite; of
appservice_bridge it needs nothing. `python bot.py config.yaml`
"""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import yaml
from mautrix.appservice import AppService
from mautrix.appservice.state_store.asyncpg import PgASStateStore
from mautrix.bridge.e2ee import EncryptionManager
from mautrix.types import EventType, Format, Membership, MessageType, TextMessageEventContent
from mautrix.util.async_db import Database
from mautrix.util.config import RecursiveDict


class Portal:
    """A room, as the encryption wants to know it."""

    encrypted = True


class Bot:
    """What `EncryptionManager` takes for a bridge."""

    name = "example"

    def __init__(self, config: Any) -> None:
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.database = Database.create(
            config["appservice.database"], upgrade_table=PgASStateStore.upgrade_table
        )
        self.state_store = PgASStateStore(self.database)
        self.az = AppService(
            server=config["homeserver.address"],
            domain=config["homeserver.domain"],
            as_token=config["appservice.as_token"],
            hs_token=config["appservice.hs_token"],
            bot_localpart=config["appservice.bot_username"],
            id=config["appservice.id"],
            state_store=self.state_store,
            ephemeral_events=config["appservice.ephemeral_events"],
            encryption_events=config["bridge.encryption.appservice"],
            # without it bodies over 1 MiB are refused; the bridge sends 900,000 B at most
            aiohttp_params={"client_max_size": 10 * 1024 * 1024},
        )
        self.e2ee = EncryptionManager(
            self,
            homeserver_address=config["homeserver.address"],
            user_id_prefix=f"@{config['appservice.bot_username']}_",
            user_id_suffix=f":{config['homeserver.domain']}",
            db_url=config["appservice.database"],
        )
        self.az.matrix_event_handler(self.on_event)

    async def get_portal(self, _room_id: str) -> Portal:
        """Every room is encrypted."""
        return Portal()

    async def run(self) -> None:
        """Until it is stopped."""
        await self.database.start()
        # a bridge has a table of its own here, which the encryption reads
        await self.database.execute(
            "create table if not exists portal (mxid text primary key, encrypted boolean)"
        )
        await self.az.start(self.config["appservice.hostname"], self.config["appservice.port"])
        await self.az.intent.ensure_registered()
        await self.e2ee.start()
        self.az.ready = True
        print("ready", flush=True)
        await asyncio.Event().wait()

    async def on_event(self, event: Any) -> None:
        """Join where it is invited, and say again what was encrypted."""
        if event.type == EventType.ROOM_MEMBER:
            await self.e2ee.handle_member_event(event)
            invited = event.content.membership == Membership.INVITE
            if invited and event.state_key == self.az.bot_mxid:
                await self.az.intent.join_room(event.room_id)
                # who was there before is in no transaction, and is to have our room keys, too
                await self.az.intent.get_joined_members(event.room_id)
        elif event.type == EventType.ROOM_ENCRYPTED and event.sender != self.az.bot_mxid:
            decrypted = await self.e2ee.decrypt(event)
            print("decrypted", decrypted.event_id, flush=True)
            await self._say(event.room_id, decrypted.content.body)

    async def _say(self, room_id: Any, text: str) -> None:
        content = TextMessageEventContent(
            msgtype=MessageType.TEXT, body=text, format=Format.HTML, formatted_body=text
        )
        kind, encrypted = await self.e2ee.encrypt(room_id, EventType.ROOM_MESSAGE, content)
        await self.az.intent.send_message_event(room_id, kind, encrypted)


async def _main(config: Any) -> None:
    await Bot(RecursiveDict(config, dict)).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(_main(yaml.safe_load(Path(sys.argv[1]).read_text())))
