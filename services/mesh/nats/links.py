"""One connection to NATS after the other, for as long as the bus is open.

In: where the servers are, and what is to be served on every connection. Out: a `Link` at a time, with its streams made
as the table says; when it is lost everything starts over on a new one. The client library's own reconnecting is
switched off: it sends what it had buffered before anybody can send again what was lost before that, which would reorder
a channel.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import nats.errors
from nats.js import JetStreamContext

from services.mesh.errors import BusUnavailable, SettingInvalid
from services.mesh.nats.client import BriefClient
from services.mesh.nats.inflow import PlainInflow, PullInflow
from services.mesh.nats.sending import RETRY_S, causes
from services.mesh.nats.streams import reconcile_stream
from services.mesh.publishing import MAX_BODY_BYTES, Publisher
from services.mesh.settings import NatsSettings
from services.mesh.subjects import STREAMS

log = logging.getLogger(__name__)

CALL_S: Final = 5.0  # any one request to the server
FAILURES: Final = (TimeoutError, OSError, nats.errors.Error)
# Of one subscription, in the library: callbacks never wait, so that it stays near nothing.
PENDING_MESSAGES: Final = 8192
PENDING_BYTES: Final = 64 << 20
_AGAIN_S: Final = 0.25
_CLOSE_S: Final = 2.0
_PING_S: Final = 5
# The library forces a flush when this much is buffered, and swallows a cancellation that it meets there. What is in
# flight is bounded by the sender's windows.
_NO_FORCED_FLUSH: Final = 1 << 30


@dataclass(slots=True)
class Link:
    """One connection. When `lost` is set nothing of it is used again."""

    client: BriefClient
    js: JetStreamContext
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    inflows: set[PlainInflow | PullInflow] = field(default_factory=set)

    async def lose(self) -> None:
        self.lost.set()
        for inflow in self.inflows:
            inflow.lose("the connection to NATS was lost")

    @asynccontextmanager
    async def subscribed(self, subject: str, inflow: PlainInflow | PullInflow) -> AsyncIterator[None]:
        """What comes on the subject goes into the inflow."""
        subscription = await self.client.subscribe(
            subject, cb=inflow.arrive, pending_msgs_limit=PENDING_MESSAGES, pending_bytes_limit=PENDING_BYTES
        )
        self.inflows.add(inflow)
        try:
            yield
        finally:
            self.inflows.discard(inflow)
            with suppress(*FAILURES):
                await subscription.unsubscribe()

    @asynccontextmanager
    async def pulled(self, stream: str, consumer: str, batch: int) -> AsyncIterator[PullInflow]:
        """The messages of a consumer; what was not taken is given back at the end."""
        inbox = self.client.new_inbox()
        inflow = PullInflow(stream, consumer, inbox, batch, self.client.publish)
        try:
            async with self.subscribed(f"{inbox}.*", inflow):
                yield inflow
        finally:
            # After unsubscribing: else the server would send them to this reader once more.
            with suppress(*FAILURES):
                await inflow.give_back(0.0)

    async def close(self) -> None:
        await self.lose()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.client.close()
        except Exception as error:  # what a broken connection raises is no more than that
            log.debug("closing the connection to NATS: %r", error)


class Links:
    """The connections of one publisher's bus.

    Args:
        serve: what is done on every link until it is lost; it raises then.
    """

    def __init__(self, settings: NatsSettings, publisher: Publisher, serve: Callable[[Link], Awaitable[None]]) -> None:
        self._settings = settings
        self._servers = (settings.url or f"nats://127.0.0.1:{settings.port}").split(",")
        self._publisher = publisher
        self._name = publisher.name
        self._serve = serve
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._trouble = "it did not answer"

    async def connect(self) -> None:
        """See `Bus.connect`."""
        assert self._keeper is None, "a bus connects once"
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                link = await self._open()
        except TimeoutError:
            raise BusUnavailable(
                f"no NATS server with JetStream is ready at {', '.join(self._servers)} within"
                f" {self._settings.connect_timeout_s:g} s: {self._trouble}; start one, or set nats.url"
            ) from None
        self._adopt(link)
        self._keeper = asyncio.create_task(self._keep(link), name=f"bus-{self._name}")

    async def next(self) -> Link:
        """The link, once there is one. Raises BusUnavailable: the bus is closed."""
        while not self._closed.is_set():
            await self._linked.wait()
            if self._link is not None:
                return self._link
        raise BusUnavailable(f"the bus of {self._name} is closed")

    async def on_every(self, what: str, work: Callable[[Link], Awaitable[None]]) -> None:
        """Does the work on one link after the other, until cancelled or until the bus is closed."""
        while not self._closed.is_set():
            try:
                await work(await self.next())
            except BusUnavailable:
                return
            except FAILURES as error:
                if self._closed.is_set():
                    return
                log.info("%s: %s broke off (%r)", self._name, what, error)
                await asyncio.sleep(_AGAIN_S)

    async def close(self) -> None:
        """Ends the connection; nothing is linked again."""
        self._closed.set()
        self._linked.set()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=2 * _CLOSE_S)

    async def _open(self) -> Link:
        """Tries until it is linked; only a deadline or a cancellation ends it otherwise."""
        attempt = 0
        while True:
            client = BriefClient()
            link = Link(client, client.jetstream(timeout=CALL_S))
            try:
                await client.connect(
                    self._servers,
                    name=self._name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # of one server within this attempt
                    reconnect_time_wait=0,
                    connect_timeout=int(CALL_S),
                    ping_interval=_PING_S,
                    pending_size=_NO_FORCED_FLUSH,
                    error_cb=self._note_trouble,
                    closed_cb=link.lose,
                )
                if client.max_payload < MAX_BODY_BYTES:
                    raise SettingInvalid(
                        f"the NATS server's max_payload is {client.max_payload}; it must be >= {MAX_BODY_BYTES}"
                    )
                for stream in STREAMS:
                    await reconcile_stream(link.js, stream, self._settings)
            except BaseException as error:
                await link.close()
                # A wrong setting stops a process at its start; later the server may be put right.
                passes = FAILURES if self._keeper is None else (SettingInvalid, *FAILURES)
                if not isinstance(error, passes):
                    raise
                await self._note_trouble(error)
            else:
                return link
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1

    async def _note_trouble(self, error: Exception) -> None:
        if not isinstance(error, nats.errors.NoServersError):  # that comes last, and says nothing of why
            self._trouble = str(error) or repr(error)
        log.debug("%s and NATS: %r", self._name, error)

    def _adopt(self, link: Link) -> None:
        self._link = link
        self._linked.set()

    async def _keep(self, link: Link) -> None:
        """Serves one link after the other until cancelled."""
        while True:
            try:
                await self._serve(link)
            except* FAILURES as lost:
                log.warning("%s lost NATS (%s); its outboxes hold", self._name, causes(lost))
            except* Exception:
                log.exception("%s: a defect in sending; on with a new connection", self._name)
            finally:
                self._link = None
                if not self._closed.is_set():
                    self._linked.clear()
                await link.close()
            link = await self._open()
            log.info("%s is back on NATS; %d events wait to be sent", self._name, self._publisher.unacknowledged)
            self._adopt(link)
