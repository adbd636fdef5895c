"""A homeserver in forty lines: hands a to-device message and a key count over to a bridge.

    python examples/ingest_homeserver.py http://127.0.0.1:9009 example.org signing.key \
        @bot_1:example.org DEVICE

signing.key is the homeserver's own, as Synapse keeps it: `ed25519 a_1 <unpadded base64>`.
"""

import asyncio
import sys
from pathlib import Path

import aiohttp
from signedjson.key import read_signing_keys

from appservice_bridge.client import IngestClient


async def main(relay_url: str, server_name: str, key: str, user_id: str, device: str) -> None:
    """Send one batch and print what becomes of each fact."""
    (signing_key,) = read_signing_keys(key.splitlines())
    facts = [
        {
            "kind": "to_device",
            "to_user_id": user_id,
            "to_device_id": device,
            "type": "org.example.hello",
            "sender": f"@homeserver:{server_name}",
            "content": {"body": "hello"},
        },
        {
            "kind": "one_time_key_counts",
            "user_id": user_id,
            "device_id": device,
            "counts": {"signed_curve25519": 0},
        },
    ]
    async with aiohttp.ClientSession() as session:
        client = IngestClient(session, relay_url, origin=server_name, signing_key=signing_key)
        for fact, verdict in zip(facts, await client.send(facts), strict=True):
            print(fact["kind"], verdict)


if __name__ == "__main__":
    relay_url, server_name, key_file, user_id, device = sys.argv[1:]
    asyncio.run(main(relay_url, server_name, Path(key_file).read_text(), user_id, device))
