"""The bot as a process of its own, in a test without an event loop; it finds all in env.json."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appservice_bridge.testing.bridge import Bridge
from appservice_bridge.testing.factories import AppserviceFactory, MatrixUserFactory

HERE = Path(__file__).parent


@pytest.fixture
def bot_url(bridge_env: Path) -> Iterator[str]:
    """Where it listens, as it says itself."""
    command = [sys.executable, str(HERE / "bot.py"), str(bridge_env), "my-echo-bot", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def test_it_answers_as_a_process(
    bridge: Bridge,
    bot_url: str,
    appservice_factory: AppserviceFactory,
    matrix_user_factory: MatrixUserFactory,
) -> None:
    appservice = appservice_factory(bot_url, registration=HERE / "my-echo-bot.yaml")
    alice = bridge.run(matrix_user_factory("alice"))
    room_id = bridge.run(alice.make_encrypted_room(appservice.sender))
    bridge.run(alice.see_join(room_id, appservice.sender))
    bridge.run(alice.say(room_id, "hello"))
    bridge.run(alice.hear(room_id, appservice.sender, "hello"))
