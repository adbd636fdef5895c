"""An encrypted message goes from a person to the echo bot and comes back."""

import asyncio
import secrets
from contextlib import AsyncExitStack
from typing import Final

from appservice_bridge.dev.person import Person, person
from appservice_bridge.dev.stack import BOT_USER, PERSON_USER, Stack
from appservice_bridge.dev.story import Story
from appservice_bridge.domain.errors import BridgeError

PATIENCE_SECONDS: Final = 60.0


class EchoMissingError(BridgeError):
    """The echo did not come back in time; the logs in the directory say where it got stuck."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(
            f"no decrypted echo within {PATIENCE_SECONDS:.0f} s; logs are in {stack.directory.path}"
        )


async def go_round(stack: Stack, story: Story) -> None:
    """Tell the story of one encrypted message.

    Raises:
        EchoMissingError: it got stuck.
        PersonRefusedError: the homeserver refused the person.
    """
    password = stack.users[PERSON_USER]["password"]
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            async with AsyncExitStack() as logout:
                with story.step(f"{PERSON_USER} logs in and publishes keys"):
                    logged_in = person(stack.synapse.url, PERSON_USER, password)
                    somebody = await logout.enter_async_context(logged_in)
                await _talk(somebody, story)
    except TimeoutError:
        raise EchoMissingError(stack) from None


async def _talk(somebody: Person, story: Story) -> None:
    text = f"hello {secrets.token_hex(4)}"
    with story.step("a room, encrypted from its first event, with the bot invited"):
        room_id = await somebody.make_encrypted_room(BOT_USER)
    with story.step("homeserver -> relay -> intake -> lane -> bot: the bot has joined"):
        await somebody.see_join(room_id, BOT_USER)
    with story.step(f'room key by Olm to the bot\'s device, then "{text}", encrypted'):
        await somebody.say(room_id, text)
    with story.step(f'the echo is back and decrypts to "{text}"'):
        await somebody.hear(room_id, BOT_USER, text)
