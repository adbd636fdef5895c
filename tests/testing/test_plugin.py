"""The plugin in a pytest of its own: what it loads, and how tests of all kinds use it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests.support.wheel import PROJECT, built

PATIENCE_SECONDS: Final = 900
PLUGIN: Final = "appservice_bridge.testing.plugin"
HEAVY: Final = (
    "aiohttp", "asyncpg", "nio", "pydantic", "psutil", "rich", "sqlite3", "synapse", "typer",
    "vodozemac", "yaml",
)  # fmt: skip
LOADED: Final = """
import json, sys, time
import pytest
began = time.process_time()
import appservice_bridge.testing.plugin
took = time.process_time() - began
code = pytest.main(["-p", "appservice_bridge.testing.plugin", "-p", "no:cacheprovider", "-q", "."])
print(json.dumps({"took": took, "code": code, "modules": sorted(sys.modules)}))
"""
STRICT: Final = """
import json, os, socket, urllib.request
from pathlib import Path
import pytest

def test_a_sync_bot_finds_everything_in_the_file(bridge_env):
    assert os.environ["APPSERVICE_BRIDGE_ENV"] == str(bridge_env)
    assert bridge_env.stat().st_mode & 0o777 == 0o600
    env = json.loads(bridge_env.read_text())
    assert env["server_name"] == "strict.example"
    with urllib.request.urlopen(env["homeserver_url"] + "/_matrix/client/versions") as answer:
        assert answer.status == 200
    Path(os.environ["WORKERS"], os.environ["PYTEST_XDIST_WORKER"]).write_text(json.dumps(env))

@pytest.mark.asyncio
async def test_strict_mode_on_the_loop_of_the_function(appservice_factory, matrix_user_factory):
    await a_message(appservice_factory, matrix_user_factory)

@pytest.mark.asyncio(loop_scope="module")
async def test_strict_mode_on_the_loop_of_the_module(appservice_factory, matrix_user_factory):
    await a_message(appservice_factory, matrix_user_factory)

async def a_message(appservice_factory, matrix_user_factory):
    seen = []
    async def handler(transaction):
        seen.extend(transaction.to_device)
    appservice = appservice_factory(handler)
    puppet = await appservice.puppet("one")
    alice = await matrix_user_factory("alice")
    await alice.send_to_device(puppet.user_id, puppet.device_id, "m.test", {})
    assert await appservice.expect_to_device(type="m.test", within=60) == seen[0]
"""


def run(directory: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Pytest as an author of bots starts it, on this checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", *arguments],
        cwd=directory,
        env=kept | {"PYTHONPATH": str(PROJECT)} | variables,
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def test_it_is_in_the_wheel_with_the_lock_of_its_synapse(tmp_path: Path) -> None:
    with zipfile.ZipFile(built("wheel", tmp_path)) as wheel:
        names = wheel.namelist()
        points = next(name for name in names if name.endswith("entry_points.txt"))
        assert f"[pytest11]\n{PLUGIN} = {PLUGIN}" in wheel.read(points).decode()
        metadata = next(name for name in names if name.endswith("METADATA"))
        assert "Provides-Extra: testing" in wheel.read(metadata).decode()
    assert "appservice_bridge/testing/synapse.txt" in names


def test_nothing_heavy_is_loaded_before_a_fixture_is_used(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["code"] == 0
    assert PLUGIN in seen["modules"]
    loaded = {name for name in seen["modules"] if name.partition(".")[0] in HEAVY}
    ours = {name for name in seen["modules"] if name.startswith("appservice_bridge.")}
    assert loaded == set()
    assert ours == {"appservice_bridge.testing", PLUGIN, "appservice_bridge.testing.factories"}
    assert seen["took"] < 2  # of a processor; about 0.01 s where nothing else runs


@pytest.mark.timeout(PATIENCE_SECONDS)
def test_strict_mode_any_loop_and_two_workers_with_a_stack_each(tmp_path: Path) -> None:
    workers = tmp_path / "workers"
    workers.mkdir()
    for name in ("one", "two"):  # with loadfile a file is for one worker
        (tmp_path / f"test_{name}.py").write_text(STRICT)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nappservice_bridge_server_name = strict.example\n"
        "appservice_bridge_appservices = 4\n"
        f"appservice_bridge_synapse_python = {sys.executable}\n"
        "asyncio_default_fixture_loop_scope = function\n"
    )
    arguments = ("-n", "2", "--dist", "loadfile", "-q")
    done = run(tmp_path, *arguments, WORKERS=str(workers))
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    envs = [json.loads(file.read_text()) for file in workers.iterdir()]
    assert len(envs) == 2
    assert envs[0]["homeserver_url"] != envs[1]["homeserver_url"]
    for env in envs:  # and nothing of either is left
        for pid in (env["pids"]["postgres"], env["pids"]["synapse"], *env["pids"]["bridge"]):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    assert not any(Path(env["config"]).with_name("postgres").exists() for env in envs)
    assert all(
        Path(log).exists() for env in envs for log in env["logs"].values() if "synapse" in log
    )


@pytest.mark.timeout(PATIENCE_SECONDS)
def test_the_example_of_a_tested_bot_passes_with_synapse_in_its_private_environment() -> None:
    done = run(PROJECT / "examples" / "tested_bot", "-q")
    assert "6 passed" in done.stdout, done.stdout + done.stderr
