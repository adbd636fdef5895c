"""A pooler before Postgres is told from a Postgres that is away."""

import asyncio
from pathlib import Path

from tests.support.bridge import registration, write_files
from tests.support.command import command

REFUSAL = b"SERROR\0C08P01\0Munsupported startup parameter: enable_bitmapscan\0\0"


async def test_a_pooler_that_refuses_our_settings_is_named_in_one_line(tmp_path: Path) -> None:
    """What PgBouncer 1.18 answers to a session that asks for more than a search_path."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(b"E" + (len(REFUSAL) + 4).to_bytes(4, "big") + REFUSAL)
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as pooler:
        port = pooler.sockets[0].getsockname()[1]
        dsn = f"postgresql://bridge:hidden-word@127.0.0.1:{port}/synapse?sslmode=disable"
        files = write_files(tmp_path, dsn, [registration("bot", "http://127.0.0.1:9")])
        code, out, err = await command("status", "--config", str(files.config))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "PgBouncer" in err
    assert "hidden-word" not in err
