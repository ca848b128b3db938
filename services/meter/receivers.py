"""Who is told of the ledger's lines: an HTTP endpoint, or a subject of JetStream.

In: CloudEvents. Out: which the receiver has taken, which it refused for good, and why it did not take the others,
which have to be told again. Every request has a deadline.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from services.mesh.errors import BusUnavailable
from services.mesh.nats.subject_publisher import SubjectPublisher
from services.mesh.settings import CloudEventsSettings
from services.meter.core.lines import BATCH_CONTENT_TYPE, CONTENT_TYPE

_SEEN_BEFORE: Final = 409
_REFUSED: Final = frozenset({400, 413, 415, 422})
_AT_ONCE: Final = 8  # requests

CloudEvent = dict[str, Any]


class ReceiverAway(Exception):
    """It did not take an event, and may take it later."""


@dataclass(slots=True)
class Told:
    """What became of some events.

    Attributes:
        settled: ids of those that need not be told again: taken, or refused for good.
        refused: (id, why) of the latter.
        away: why others were not taken; empty where all are settled.
    """

    settled: set[str] = field(default_factory=set)
    refused: list[tuple[str, str]] = field(default_factory=list)
    away: str = ""


class Receiver(Protocol):
    @property
    def at_once(self) -> int:
        """How many events `tell` takes well."""
        ...

    async def tell(self, events: Sequence[CloudEvent]) -> Told: ...

    async def close(self) -> None: ...


def receiver_of(settings: CloudEventsSettings) -> Receiver:
    """The receiver that the settings name; nothing connects yet."""
    parts = urlsplit(settings.url)
    if parts.scheme == "nats":
        server = urlunsplit(parts._replace(path="", query="", fragment=""))
        publisher = SubjectPublisher(server, parts.path.strip("/"), settings.timeout_s)
        return NatsReceiver(publisher)
    return HttpReceiver(settings)


def receiver_name(settings: CloudEventsSettings) -> str:
    """By which its mark is kept: the URL without who logs in."""
    parts = urlsplit(settings.url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class HttpReceiver:
    """One event a request, in structured mode; with `batch` above 1 so many, in batch mode."""

    def __init__(self, settings: CloudEventsSettings) -> None:
        self._url = settings.url
        self._batch = settings.batch
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout_s)
        self._headers = {"Authorization": f"Bearer {settings.bearer}"} if settings.bearer else {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def at_once(self) -> int:
        return _AT_ONCE * self._batch

    async def tell(self, events: Sequence[CloudEvent]) -> Told:
        """A request that fails takes no other with it."""
        told = Told()
        chunks = [events[start : start + self._batch] for start in range(0, len(events), self._batch)]
        await asyncio.gather(*(self._tell(chunk, told) for chunk in chunks))
        return told

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _tell(self, events: Sequence[CloudEvent], told: Told) -> None:
        try:
            refused = await self._post(events)
        except ReceiverAway as away:
            told.away = str(away)
        else:
            told.settled.update(each["id"] for each in events)
            told.refused += refused

    async def _post(self, events: Sequence[CloudEvent]) -> list[tuple[str, str]]:
        one = self._batch == 1
        status, said = await self._answer(events[0] if one else events, CONTENT_TYPE if one else BATCH_CONTENT_TYPE)
        if status not in _REFUSED:
            return []
        if len(events) == 1:
            return [(events[0]["id"], f"HTTP {status}: {said}")]
        refused = []  # which of them it is, only they can tell by themselves
        for each in events:
            status, said = await self._answer([each], BATCH_CONTENT_TYPE)
            if status in _REFUSED:
                refused.append((each["id"], f"HTTP {status}: {said}"))
        return refused

    async def _answer(self, document: object, content_type: str) -> tuple[int, str]:
        """Status and the beginning of what was said: taken, seen before, or refused.

        Raises:
            ReceiverAway: any other answer, or none.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        body = json.dumps(document, separators=(",", ":")).encode()
        headers = {**self._headers, "Content-Type": content_type}
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
                said = (await answer.content.read(200)).decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ReceiverAway(f"{type(error).__name__}: {error}") from error
        if 200 <= status < 300 or status == _SEEN_BEFORE or status in _REFUSED:
            return status, said
        raise ReceiverAway(f"HTTP {status}: {said}")


class NatsReceiver:
    def __init__(self, publisher: SubjectPublisher) -> None:
        self._publisher = publisher

    @property
    def at_once(self) -> int:
        return 64

    async def tell(self, events: Sequence[CloudEvent]) -> Told:
        """All or none; the server refuses none for good."""
        messages = [(each["id"], json.dumps(each, separators=(",", ":")).encode()) for each in events]
        try:
            await self._publisher.publish(messages, {"Content-Type": CONTENT_TYPE})
        except BusUnavailable as away:
            return Told(away=str(away))
        return Told({each["id"] for each in events})

    async def close(self) -> None:
        await self._publisher.close()
