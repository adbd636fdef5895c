"""The command line as operators run it."""

import asyncio
import sys


async def command(*arguments: str, typed: str = "") -> tuple[int, str, str]:
    """A command in a process of its own: exit code, stdout, stderr; `typed` is what it reads."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appservice_bridge", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(typed.encode())
    return process.returncode or 0, out.decode(), err.decode()
