"""The streams that run on a worker, by the engine's sequence and by request; and when the last of them has gone.

In: streams as they are opened and as they end. Out: which stream is meant.
"""

import asyncio
from collections.abc import Iterable, Iterator

from services.worker.stream import Stream


class RunningStreams:
    """Mutable. A stream that was cancelled is found by its sequence only: its request may have come anew.

    Attributes:
        by_sequence: what the engine's steps are told by; nobody else writes to it.
    """

    def __init__(self) -> None:
        self.by_sequence: dict[int, Stream] = {}
        self._by_request: dict[str, Stream] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self.by_sequence)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self.by_sequence.values()))

    def __contains__(self, stream: object) -> bool:
        return isinstance(stream, Stream) and self.by_sequence.get(stream.order.engine.sequence) is stream

    @property
    def requests(self) -> Iterable[str]:
        """Ids of those that nobody has cancelled."""
        return self._by_request.keys()

    @property
    def wanted(self) -> list[Stream]:
        """Those that nobody has cancelled."""
        return list(self._by_request.values())

    def of(self, request_id: str) -> Stream | None:
        """The request's stream that nobody has cancelled."""
        return self._by_request.get(request_id)

    def add(self, stream: Stream) -> None:
        """Of several streams of one request the last is meant by its id."""
        request = stream.order.engine
        self.by_sequence[request.sequence] = stream
        self._by_request[request.request_id] = stream
        self._empty.clear()

    def cancelled(self, stream: Stream) -> None:
        """It runs until the engine has ended it, and its request may come anew."""
        request_id = stream.order.engine.request_id
        if self._by_request.get(request_id) is stream:
            del self._by_request[request_id]

    def remove(self, stream: Stream) -> None:
        """It has ended."""
        del self.by_sequence[stream.order.engine.sequence]
        self.cancelled(stream)
        if not self.by_sequence:
            self._empty.set()

    async def emptied(self, within_s: float) -> bool:
        """Waits until nothing runs; False when something still does after so long."""
        try:
            async with asyncio.timeout(within_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
