"""Sends a publisher's outboxes over one NATS connection until each message is acknowledged.

One task per outbox keeps a window of messages in flight: published in order, without waiting between them; the
acknowledgements come back on an inbox. What is refused, or not acknowledged in time, is sent again from the first such
message on, after a delay; the server drops what it has stored already by the message id. A connection on which that
does not help is given up.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from services.mesh.errors import BusUnavailable
from services.mesh.nats.inflow import ConnectionLost, Message
from services.mesh.publishing import Outbox, Publisher
from services.mesh.spool import Spool, Spooled

log = logging.getLogger(__name__)

WINDOW: Final = 128  # messages of one channel in flight
RETRY_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_PATIENCE: Final = 3  # failures in a row
_STORED: Final = b'{"stream":'  # how the server's acknowledgement begins; a refusal begins with its error


class Sender:
    """Sends over one connection.

    Args:
        inbox: acknowledgements come on `inbox.<channel>.<sequence>`; `acknowledged` is the callback of `inbox.*.*`, for
            what `stored` has not taken before.
        publish: (subject, body, reply, headers) to the connection.
        ack_timeout_s: how long the oldest message in flight may go unacknowledged.
    """

    def __init__(
        self,
        publisher: Publisher,
        inbox: str,
        publish: Callable[[str, bytes, str, dict[str, str]], Awaitable[None]],
        ack_timeout_s: float,
    ) -> None:
        self._publisher = publisher
        self._inbox = inbox
        self._publish = publish
        self._ack_timeout_s = ack_timeout_s

    async def run(self) -> None:
        """Sends until cancelled. Raises ConnectionLost, in a group: another connection may do better."""
        async with asyncio.TaskGroup() as tasks:
            for outbox in self._publisher.outboxes.values():
                tasks.create_task(self._send(outbox), name=f"send-{outbox.channel.name}")
            tasks.create_task(self._send_best_effort(), name="send-best-effort")

    def stored(self, subject: bytes, body: bytes) -> bool:
        """Takes what came on the inbox, if it is an acknowledgement as nearly all are; they need not be read."""
        if not body.startswith(_STORED) or b"error" in body:
            return False
        _, name, sequence = subject.decode("ascii", "replace").rsplit(".", 2)
        if name not in self._publisher.outboxes or not sequence.isdecimal():
            return False
        self._publisher.acknowledged(name, int(sequence))
        return True

    async def acknowledged(self, message: Message) -> None:
        """Takes what else came on the inbox."""
        _, channel, sequence = message.subject.rsplit(".", 2)
        if message.headers and (status := message.headers.get("Status")):
            self._publisher.outboxes[channel].refuse(f"no stream takes it (status {status})")
            return
        if error := json.loads(message.data).get("error"):
            self._publisher.outboxes[channel].refuse(f"the server refused it: {error.get('description', error)}")
        else:
            self._publisher.acknowledged(channel, int(sequence))

    async def _send(self, outbox: Outbox) -> None:
        name = outbox.channel.name
        self._publisher.start_over(outbox)
        failures, oldest, watch = 0, outbox.oldest, _Watch(outbox, self._ack_timeout_s)
        try:
            while True:
                outbox.changed.clear()
                while (message := outbox.next_to_send(WINDOW)) is not None:
                    reply = f"{self._inbox}.{name}.{message.id.sequence}"
                    await self._publish(message.subject, message.body, reply, message.headers)
                if outbox.oldest != oldest:
                    failures, oldest = 0, outbox.oldest
                    watch.anew()
                watch.see_to_it()
                await outbox.changed.wait()
                if not outbox.refusal:
                    continue
                failures += 1
                log.warning("channel %s from %d: %s", name, outbox.oldest, outbox.refusal)
                if failures > _PATIENCE:
                    raise ConnectionLost(f"channel {name}: {outbox.refusal}")
                await asyncio.sleep(RETRY_S[failures])
                self._publisher.start_over(outbox)
                watch.anew()
        finally:
            watch.close()

    async def _send_best_effort(self) -> None:
        """Sends what is worth sending at once; what piled up while there was no connection is not."""
        waiting, added = self._publisher.best_effort, self._publisher.best_effort_added
        waiting.clear()
        while True:
            added.clear()
            while waiting:
                message = waiting.popleft()
                await self._publish(message.subject, message.body, "", message.headers)
            await added.wait()


class _Watch:
    """Refuses in the server's stead when an outbox's oldest message in flight goes unacknowledged for too long.

    One timer, which looks again as late as it can: what moves on many times a second sets none each time.
    """

    def __init__(self, outbox: Outbox, timeout_s: float) -> None:
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._ends_s = self._loop.time() + timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def anew(self) -> None:
        """The oldest is another one, or is sent again."""
        self._ends_s = self._loop.time() + self._timeout_s

    def see_to_it(self) -> None:
        """Something may be in flight."""
        if self._timer is None and self._outbox.in_flight:
            self._timer = self._loop.call_at(self._ends_s, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._outbox.in_flight and self._loop.time() >= self._ends_s:
            self._outbox.refuse(f"no acknowledgement within {self._timeout_s:g} s")
        else:
            self.see_to_it()


async def send_left_behind(spool: Spool, store: Callable[[Spooled], Awaitable[None]]) -> None:
    """Sends what earlier starts of the publisher left when they were killed, and removes it once it is all stored.

    Args:
        store: stores one message, under the id that it has. Raises BusUnavailable.
    """
    for left in spool.left_behind():
        sent = False
        try:
            messages = left.messages()
            for message in messages:
                await _stored(message, store)
            sent = True
            if messages:
                log.info("%d events that an earlier start had left are sent: %s", len(messages), left.path)
        except OSError as error:
            log.error("what an earlier start left cannot be read: %s: %s", left.path, error)
        finally:
            left.close(sent=sent)


async def _stored(message: Spooled, store: Callable[[Spooled], Awaitable[None]]) -> None:
    while True:
        try:
            return await store(message)
        except BusUnavailable as error:
            log.warning("an event that an earlier start left, on %s: %s", message.subject, error)
            await asyncio.sleep(RETRY_S[-1])


def causes(group: BaseExceptionGroup[BaseException]) -> str:
    """What the exceptions in a group say."""
    parts = (
        causes(each) if isinstance(each, BaseExceptionGroup) else str(each) or repr(each) for each in group.exceptions
    )
    return "; ".join(dict.fromkeys(parts))
