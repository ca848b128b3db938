"""Publishing to a subject of somebody else's JetStream, which is none of the mesh's own streams.

In: messages with their ids. Out: acknowledgements of the server that a stream has kept each; or why not.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import nats
import nats.errors
from nats.aio.client import Client

from services.mesh.errors import BusUnavailable

_FAILURES: Final = (TimeoutError, OSError, nats.errors.Error)
_CLOSE_S: Final = 2.0


class SubjectPublisher:
    """One connection, made at the first message and again after a failure.

    Args:
        timeout_s: of connecting, and of each message's acknowledgement.
    """

    def __init__(self, url: str, subject: str, timeout_s: float) -> None:
        self._url = url
        self._subject = subject
        self._timeout_s = timeout_s
        self._client: Client | None = None

    async def publish(self, messages: Sequence[tuple[str, bytes]], headers: Mapping[str, str]) -> None:
        """Publishes (id, body) pairs, all at once; returns when a stream has all of them.

        Raises:
            BusUnavailable: the server is away, or no stream keeps the subject. Some may have been kept.
        """
        failure: BaseException | None = None
        try:
            async with asyncio.timeout(2 * self._timeout_s):
                client = await self._connected()
                js = client.jetstream(timeout=self._timeout_s)
                async with asyncio.TaskGroup() as tasks:
                    for message_id, body in messages:
                        own = {**headers, "Nats-Msg-Id": message_id}
                        tasks.create_task(js.publish(self._subject, body, timeout=self._timeout_s, headers=own))
        except* _FAILURES as failures:
            failure = failures
        if failure is not None:
            await self.close()
            while isinstance(failure, BaseExceptionGroup):
                failure = failure.exceptions[0]
            why = str(failure) or type(failure).__name__
            raise BusUnavailable(f"{self._subject} was not published: {why}") from failure

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await client.close()
            except _FAILURES:
                return  # it is gone already

    async def _connected(self) -> Client:
        if self._client is None or self._client.is_closed:
            self._client = await nats.connect(
                self._url, allow_reconnect=False, connect_timeout=max(1, int(self._timeout_s)), error_cb=_ignore
            )
        return self._client


async def _ignore(_: Exception) -> None:
    """What breaks a connection is told by the message that it fails."""
