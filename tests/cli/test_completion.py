"""What a shell is told to complete a command line to."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.bridge import registration, write_files

PROGRAM: Final = "from appservice_bridge.cli.main import app; app(prog_name='appservice-bridge')"


async def completed(*words: str, config: Path | None = None) -> list[str]:
    """As the script that `--install-completion` leaves in bash asks."""
    line = ("appservice-bridge", *words)
    asked = {
        "_APPSERVICE_BRIDGE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(line),
        "COMP_CWORD": str(len(line) - 1),
    }
    if config is not None:
        asked["APPSERVICE_BRIDGE_CONFIG"] = str(config)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM), env=os.environ | asked, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode().split()


async def test_commands_are_completed() -> None:
    assert await completed("redr") == ["redrive"]


@pytest.mark.parametrize(
    "words",
    [
        ["pause", "b"],
        ["dead-letters", "b"],
        ["discard", "--appservice", "b"],
        ["replay", "b"],
        ["backfill", "b"],
        ["resync", "b"],
    ],
)
async def test_ids_of_appservices_are_completed(tmp_path: Path, words: list[str]) -> None:
    some = [registration(one, None) for one in ("bot", "bridge", "other")]
    files = write_files(tmp_path, "postgresql://nobody@127.0.0.1:9/none", some)
    assert await completed(*words, config=files.config) == ["bot", "bridge"]


async def test_a_config_that_is_not_there_completes_to_nothing(tmp_path: Path) -> None:
    assert await completed("pause", "b", config=tmp_path / "none.yaml") == []
