"""Connections to appservices, kept alive between transactions."""

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection


class QuietConnector(aiohttp.TCPConnector):
    """Never sends on a connection that has said something unasked.

    An answer that nobody asked for would be read as the answer to the next transaction, and
    acknowledge what the appservice has not seen. aiohttp closes such a connection only where it
    is still being read; one that spoke while it rested is found here.
    """

    async def _get(self, key, traces):  # type: ignore[no-untyped-def]
        connection: Connection | None = await super()._get(key, traces)
        while connection is not None and _spoke_unasked(connection.protocol):
            connection.close()
            connection = await super()._get(key, traces)
        return connection


def _spoke_unasked(protocol: ResponseHandler | None) -> bool:
    return protocol is not None and protocol.should_close
