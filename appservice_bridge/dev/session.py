"""One `dev` from its first line to the last process stopped."""

import asyncio
import logging
import signal
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from appservice_bridge.dev.dev_directory import DevDirectory, taken
from appservice_bridge.dev.env_file import write_env_file
from appservice_bridge.dev.parts import Keeper
from appservice_bridge.dev.process import DIES_WITH_PARENT, ChildDiedError
from appservice_bridge.dev.round_trip import go_round
from appservice_bridge.dev.stack import Stack, running
from appservice_bridge.dev.story import Story
from appservice_bridge.domain.errors import BridgeError

LAST_LINES: Final = 15
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevOptions:
    """What the command line says.

    Attributes:
        once: end after one verified round trip instead of staying up; needs the bot.
        registrations: of appservices to plug in.
    """

    directory: Path
    once: bool = False
    registrations: Sequence[Path] = ()
    with_bot: bool = True


async def hold(options: DevOptions, story: Story) -> bool:
    """Run `dev` until it is done or stopped by a signal; whether that was in order.

    Belongs on the main thread, see `ChildProcess`.
    """
    session = asyncio.create_task(_session(options, story))
    loop = asyncio.get_running_loop()
    for stop_signal in STOP_SIGNALS:
        if stop_signal is signal.SIGHUP and signal.getsignal(stop_signal) is signal.SIG_IGN:
            continue  # nohup
        loop.add_signal_handler(stop_signal, _cancel_once, session)
    try:
        return await session
    except asyncio.CancelledError:
        story.say("stopped")
        return not options.once
    except BridgeError as error:
        story.fail(str(error))
        if isinstance(error, ChildDiedError):
            story.say(_last_lines(error.log))
        return False
    except OSError as error:
        story.fail(f"{error}")
        return False


def _cancel_once(session: "asyncio.Task[bool]") -> None:
    """A second Ctrl-C must not interrupt the stopping."""
    if not session.cancelling():
        session.cancel()


async def _session(options: DevOptions, story: Story) -> bool:
    with taken(options.directory) as directory:
        _log_to(directory)
        async with running(
            directory, options.registrations, with_bot=options.with_bot, story=story
        ) as stack:
            write_env_file(stack)
            return await _until_first_ends(
                _show(options, stack, story), *(keeper.keep() for keeper in _keepers(stack, story))
            )


async def _until_first_ends(*works: Coroutine[Any, Any, bool]) -> bool:
    """Run side by side; the first that ends, or fails, ends all."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        results = [task.result() for task in done]
        return all(results)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _show(options: DevOptions, stack: Stack, story: Story) -> bool:
    try:
        if options.with_bot:
            await go_round(stack, story)
            story.say(f"An encrypted message went round. {story.seconds:.1f} s in all.")
    except BridgeError as error:
        if options.once:
            raise
        story.fail(str(error))
    if not options.once:
        _say_where(stack, story)
        await asyncio.Event().wait()
    return True


def _keepers(stack: Stack, story: Story) -> list[Keeper]:
    return [
        Keeper(name=name, part=part, say=story.say, back=lambda: write_env_file(stack))
        for name, part in stack.parts.items()
    ]


def _say_where(stack: Stack, story: Story) -> None:
    story.say(f"homeserver  {stack.synapse.url}")
    story.say(f"relay       {stack.bridge.relay.url}")
    story.say(f"admin       {stack.bridge.admin.url}")
    story.say(f"all else    {stack.directory.env}")
    if not DIES_WITH_PARENT:
        story.say("on this system the parts outlive this command if it is killed with -9")
    story.say("Ctrl-C stops everything.")


def _log_to(directory: DevDirectory) -> None:
    """What libraries log (nio, aiohttp) belongs in a file, not between the steps."""
    logging.basicConfig(filename=directory.log("dev"), level=logging.WARNING, force=True)


def _last_lines(log: Path) -> str:
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:])
    except OSError:
        return ""
