import asyncio
import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]
import pytest
import yaml
from aiohttp import web

from appservice_bridge.dev.local_server import serving
from appservice_bridge.dev.ports import LoopbackPort
from tests.support.dev_command import PATIENCE_SECONDS, DevCommand, survivors

MINE = "my bot/1"


@pytest.fixture(scope="module")
def port() -> LoopbackPort:
    return LoopbackPort()


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, port: LoopbackPort) -> Iterator[DevCommand]:
    """One `dev` for all tests here, in their order; the last one kills it."""
    directory = tmp_path_factory.mktemp("dev")
    registration = directory / "mine.yaml"
    registration.write_text(yaml.safe_dump(my_registration(port)))
    command = DevCommand.start(directory / "state", "--registration", str(registration))
    try:
        command.wait_until_said("Ctrl-C stops everything")
        yield command
    finally:
        command.end()


def test_env_json_says_all_and_only_to_its_owner(dev: DevCommand) -> None:
    env = dev.env()
    assert stat.S_IMODE((dev.directory / "env.json").stat().st_mode) == 0o600
    assert set(env["appservices"]) == {"echo-bot", MINE}
    assert set(env["appservices"][MINE]) == {"as_token", "hs_token", "url", "sender_localpart"}
    assert set(env["pids"]) == {"postgres", "synapse", "bridge"}
    pids = [env["pids"]["postgres"], env["pids"]["synapse"], *env["pids"]["bridge"]]
    assert all(psutil.Process(pid).parent().pid == dev.process.pid for pid in pids)
    assert all(Path(path).exists() for path in (*env["registrations"], *env["logs"].values()))
    assert env["server_name"] in next(iter(env["users"]))
    secrets = [env["admin_token"], env["registration_shared_secret"], env["database"]]
    assert not any(secret in dev.said() for secret in secrets)


def test_a_second_dev_in_the_same_directory_is_refused(dev: DevCommand) -> None:
    second = DevCommand.start(dev.directory, "--once")
    assert second.process.wait(PATIENCE_SECONDS) == 1
    assert f"another dev (pid {dev.process.pid}) runs in" in second.said()
    assert (dev.directory / "env.json").exists()


@pytest.mark.parametrize("name", ["synapse", "postgres", "bridge"])
def test_a_part_that_dies_is_started_again(dev: DevCommand, name: str) -> None:
    before = pid_of(dev, name)
    os.kill(before, signal.SIGKILL)
    dev.wait_until_said(f"{name} (pid {before}) died of signal 9: starting it again")
    dev.wait_until(lambda: pid_of(dev, name) != before)
    dev.wait_until_said(f"{name} works again as pid {pid_of(dev, name)}")


async def test_an_appservice_of_ones_own_is_plugged_in_and_served_after_all_that(
    dev: DevCommand, port: LoopbackPort
) -> None:
    arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {my_registration(port)['hs_token']}"
        arrived.put_nowait(await request.json())
        return web.json_response({})

    app = web.Application()
    app.router.add_put("/_matrix/app/v1/transactions/{txn}", take)
    async with serving(app, port):
        room_id = await make_room(dev.env())
        transaction = await asyncio.wait_for(arrived.get(), 60)
    assert transaction["events"][0]["room_id"] == room_id


def test_kill_9_leaves_nothing_behind_and_the_directory_can_be_used_again(dev: DevCommand) -> None:
    family = dev.family()
    assert len(family) > 3
    dev.process.kill()
    dev.process.wait()
    assert survivors(family) == []

    again = DevCommand.start(dev.directory, "--once")
    assert again.process.wait(PATIENCE_SECONDS) == 0, again.said()


def my_registration(port: LoopbackPort) -> dict[str, Any]:
    return {
        "id": MINE,
        "url": port.url,
        "as_token": "my-as-token",
        "hs_token": "my-hs-token",
        "sender_localpart": "mine",
        "rate_limited": False,
        "namespaces": {"users": [{"exclusive": True, "regex": "@mine_.*"}]},
    }


async def make_room(env: dict[str, Any]) -> str:
    """Synapse answers 500 once for each database connection that was cut under it."""
    headers = {"Authorization": f"Bearer {env['appservices'][MINE]['as_token']}"}
    async with aiohttp.ClientSession(env["homeserver_url"], headers=headers) as session:
        for _ in range(10):
            async with session.post("/_matrix/client/v3/createRoom", json={}) as answer:
                if answer.status == 200:
                    return str((await answer.json())["room_id"])
        raise AssertionError(await answer.text())


def pid_of(dev: DevCommand, name: str) -> int:
    pids = json.loads((dev.directory / "env.json").read_text())["pids"]
    return int(pids["bridge"][0] if name == "bridge" else pids[name])
