"""One router under test: its workers, its client, and what it tells the mesh."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import pytest

from services.mesh.errors import TokenworksError
from services.mesh.events import Event, RequestAdmitted, RequestFinished
from services.mesh.lifecycle import Lifecycle
from services.mesh.memory_bus import MemoryBroker
from services.mesh.rpc import error_of
from services.mesh.subjects import ADMITTED, FINISHED
from services.router.wiring import RunningRouter
from tests.mesh.router.fake_worker import MODEL, FakeWorker, Opened, answer_at_once, text_of
from tokenworks.v1 import inference_pb2 as pb
from tokenworks.v1 import inference_pb2_grpc

DEADLINE_S: Final = 90.0  # a loaded machine takes its time to start processes
TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def eventually(holds: Callable[[], bool], what: str) -> None:
    ends_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < ends_s, f"after {DEADLINE_S:g} s still not so: {what}"
        await asyncio.sleep(0.01)


@dataclass
class Answer:
    """A whole stream as a client saw it; `first` where it begins with a later token than the first."""

    first: int = 0
    messages: list[pb.GenerateResponse] = field(default_factory=list)
    trace_id: str = ""
    worker: str = ""

    def add(self, message: pb.GenerateResponse) -> None:
        first = self.first + self.tokens
        assert message.first_index == first, "a gap or a repeat"
        assert message.text == text_of(message.first_index, message.token_count)
        assert list(message.token_ids) == list(range(first, first + message.token_count))
        assert not self.messages or not self.messages[-1].HasField("finish")
        self.messages.append(message)

    @property
    def tokens(self) -> int:
        return sum(each.token_count for each in self.messages)

    @property
    def finish(self) -> pb.Finish:
        return self.messages[-1].finish


class Router:
    """A router under test: its workers, its client, and what it published."""

    def __init__(self, broker: MemoryBroker, running: RunningRouter, life: Lifecycle, key: str, other: str) -> None:
        self.broker = broker
        self.key = key
        self.running = running
        self.life = life
        self.other_key = other
        self.workers: list[FakeWorker] = []
        self.published: list[Event] = []
        self.traceparents: list[str] = []
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.grpc_port}")
        self.stub: Any = inference_pb2_grpc.RouterStub(self._channel)  # type: ignore[no-untyped-call]
        self.metadata = (("authorization", f"Bearer {key}"), ("traceparent", TRACEPARENT))

    async def watch(self) -> None:
        async def keep(delivered: Any) -> None:
            self.published.append(delivered.event)

        await self.broker.bus("test", "watcher").watch([ADMITTED, FINISHED], keep)

    async def worker(self, name: str, behaviour: Callable[[Opened], None] = answer_at_once, **facts: Any) -> FakeWorker:
        """A started worker that the router has a session to."""
        worker = FakeWorker(name, self.broker.bus("worker", name), behaviour, facts=facts)
        self.workers.append(worker)
        await worker.start()
        await self.linked(name)
        return worker

    async def linked(self, name: str) -> None:
        def stands() -> bool:
            known = self.running.fleet.worker(name)
            return known is not None and known.linked

        await eventually(stands, f"the router has a session to {name}")

    def generate(self, max_tokens: int = 4, **changes: Any) -> Any:
        metadata = changes.pop("metadata", self.metadata)
        request = pb.GenerateRequest(
            **{"model": MODEL, "text": "river", "sampling": pb.Sampling(max_tokens=max_tokens), **changes}
        )
        return self.stub.Generate(request, metadata=metadata, timeout=DEADLINE_S)

    async def answer(self, max_tokens: int = 4, **changes: Any) -> Answer:
        call = self.generate(max_tokens, **changes)
        answer = Answer()
        async for message in call:
            answer.add(message)
        initial = dict(await call.initial_metadata())
        answer.trace_id, answer.worker = initial["x-tokenworks-trace-id"], initial["x-tokenworks-worker"]
        return answer

    async def refusal(self, **changes: Any) -> tuple[grpc.StatusCode, TokenworksError]:
        call = self.generate(**changes)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        return caught.value.code(), error_of(caught.value)

    @property
    def finished(self) -> list[RequestFinished]:
        return [each for each in self.published if isinstance(each, RequestFinished)]

    @property
    def admitted(self) -> list[RequestAdmitted]:
        return [each for each in self.published if isinstance(each, RequestAdmitted)]

    async def last_word(self, count: int = 1) -> RequestFinished:
        """The latest RequestFinished, once there are `count`."""
        await eventually(lambda: len(self.finished) >= count, f"{count} requests have finished")
        assert len(self.finished) == len(self.admitted) == count
        assert not len(self.running.dispatcher)
        return self.finished[-1]

    async def close(self) -> None:
        await self._channel.close()
        if not self.life.draining:
            await self.life.stop()
        for worker in self.workers:
            await worker.stop()
        assert self.life.failure is None
