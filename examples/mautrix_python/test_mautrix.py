"""mautrix-python, in its own environment, decrypts through the bridge what a person encrypts.

`make example-mautrix` makes the environment and names its Python in MAUTRIX_PYTHON.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from appservice_bridge.dev.ports import LoopbackPort
from appservice_bridge.testing.appservice import Appservice
from appservice_bridge.testing.bridge import Bridge
from appservice_bridge.testing.factories import AppserviceFactory, MatrixUserFactory

HERE = Path(__file__).parent
READY_SECONDS = 60


@pytest.fixture
def bot(
    bridge: Bridge, appservice_factory: AppserviceFactory, tmp_path: Path
) -> Iterator[Appservice]:
    """The bot as a process, with the config that is beside it and this homeserver's address."""
    port = LoopbackPort()
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    config["homeserver"] = {"address": bridge.homeserver_url, "domain": bridge.server_name}
    config["appservice"] |= {"port": port.number, "database": f"sqlite:{tmp_path / 'bot.db'}"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    appservice = appservice_factory(port.url, registration=HERE / "registration.yaml")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [os.environ["MAUTRIX_PYTHON"], str(HERE / "bot.py"), str(tmp_path / "config.yaml")]
    port.release()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield appservice
        process.terminate()
        assert "decrypted" in process.stdout.read()


async def test_a_bot_on_mautrix_python_decrypts_and_answers(
    bot: Appservice, bridge: Bridge, matrix_user_factory: MatrixUserFactory
) -> None:
    alice = await matrix_user_factory("alice")
    room_id = await alice.make_encrypted_room(bot.sender)
    await alice.see_join(room_id, bot.sender, within=READY_SECONDS)
    await alice.say(room_id, "hello")
    await alice.hear(room_id, bot.sender, "hello", within=READY_SECONDS)
    await bridge.kill()
    bot.fail_next(503, times=2)
    await alice.say(room_id, "and again")
    await alice.hear(room_id, bot.sender, "and again", within=READY_SECONDS)
