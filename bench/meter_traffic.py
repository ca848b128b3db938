"""Traffic for the meter's benchmark: what workers and routers report of streams that run at any time, encoded as on the
bus. In: how many streams, on how many workers. Out: messages without end, the same for the same arguments.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.mesh.bus import Delivered, EventId
from services.mesh.codec import decode, encode
from services.mesh.events import Event, RequestAdmitted, RequestFinished, TokenEntry, TokensGenerated
from services.mesh.subjects import subject_of

REPORT_MS: Final = 50
START_MS: Final = 1_700_000_040_000
ACCELERATORS: Final = ("nvidia-h100-sxm", "amd-mi300x", "intel-gaudi3", "google-tpu-v6e", "aws-trainium2", "nvidia-l4")


@dataclass(frozen=True, slots=True)
class Message:
    """One message as the bus has it; `entries`: token entries in it."""

    id: EventId
    kind: type[Event]
    subject: str
    body: bytes
    entries: int
    due_ms: int

    def delivered(self) -> Delivered:
        return Delivered(self.id, decode(self.kind, self.body), self.subject)


class Traffic:
    """Messages as the bus has them, in the order of their times; the same for the same arguments."""

    def __init__(self, streams: int, workers: int) -> None:
        self._random = random.Random(1)
        self._workers = workers
        self._made = 0
        self._sequences: dict[str, int] = {}
        self._running = [self._new() for _ in range(streams)]

    def messages(self) -> Iterator[Message]:
        """Without end."""
        now_ms = START_MS
        while True:
            now_ms += REPORT_MS
            yield from self._tick(now_ms)

    def _new(self) -> dict[str, int | str]:
        self._made += 1
        return {
            "id": f"{self._made:012x}-{self._random.getrandbits(64):016x}",
            "at": 0,
            "length": self._random.randint(50, 400),
            "worker": self._random.randrange(self._workers),
            "tenant": self._random.randrange(20),
            "workload": self._random.randrange(3),
        }

    def _tick(self, now_ms: int) -> list[Message]:
        by_worker: dict[int, list[TokenEntry]] = {}
        ended: list[Event] = []
        for place, stream in enumerate(self._running):
            if not stream["at"]:
                ended.append(_admitted(stream, now_ms))
            count = min(self._random.randint(2, 4), int(stream["length"]) - int(stream["at"]))
            last = int(stream["at"]) + count == stream["length"]
            by_worker.setdefault(int(stream["worker"]), []).append(
                TokenEntry(
                    request_id=str(stream["id"]),
                    tenant=f"tenant-{stream['tenant']}",
                    workload=f"workload-{stream['workload']}",
                    model="llama-3.1-8b",
                    slo_class="standard",
                    from_index=int(stream["at"]),
                    count=count,
                    prompt_tokens=800,
                    cached_prompt_tokens=0,
                    device_ns=2_000_000 + self._random.randrange(1000),
                    energy_uj=900_000 + self._random.randrange(1000),
                    last=last,
                )
            )
            stream["at"] = int(stream["at"]) + count
            if last:
                ended.append(_finished(stream, now_ms))
                self._running[place] = self._new()
        events: list[tuple[str, Event]] = [("router.router-0.requests", event) for event in ended]
        for worker, entries in by_worker.items():
            accelerator = ACCELERATORS[worker % len(ACCELERATORS)]
            for start in range(0, len(entries), 256):
                event = TokensGenerated(
                    worker=f"worker-{worker}",
                    pool=accelerator,
                    accelerator=accelerator,
                    entries=tuple(entries[start : start + 256]),
                    at_unix_ms=now_ms,
                )
                events.append((f"worker.worker-{worker}.tokens", event))
        return [self._message(publisher, event, now_ms) for publisher, event in events]

    def _message(self, publisher: str, event: Event, now_ms: int) -> Message:
        sequence = self._sequences[publisher] = self._sequences.get(publisher, 0) + 1
        entries = len(event.entries) if isinstance(event, TokensGenerated) else 0
        event_id = EventId(publisher, "epoch", sequence)
        return Message(event_id, type(event), subject_of(event), encode(event), entries, now_ms)


def _admitted(stream: dict[str, int | str], now_ms: int) -> RequestAdmitted:
    return RequestAdmitted(
        request_id=str(stream["id"]),
        router="router-0",
        tenant=f"tenant-{stream['tenant']}",
        workload=f"workload-{stream['workload']}",
        model="llama-3.1-8b",
        slo_class="standard",
        prompt_tokens=800,
        max_tokens=400,
        worker=f"worker-{stream['worker']}",
        pool="",
        plan="llama-3.1-8b:1",
        at_unix_ms=now_ms,
        price_book="list@1",
    )


def _finished(stream: dict[str, int | str], now_ms: int) -> RequestFinished:
    accelerator = ACCELERATORS[int(stream["worker"]) % len(ACCELERATORS)]
    return RequestFinished(
        request_id=str(stream["id"]),
        router="router-0",
        tenant=f"tenant-{stream['tenant']}",
        workload=f"workload-{stream['workload']}",
        model="llama-3.1-8b",
        slo_class="standard",
        worker=f"worker-{stream['worker']}",
        pool=accelerator,
        accelerator=accelerator,
        delivered_from=0,
        delivered_count=int(stream["length"]),
        prompt_tokens=800,
        cached_prompt_tokens=0,
        outcome="length",
        ttft_s=0.1,
        tpot_s=0.02,
        e2e_s=5.0,
        slo_met=True,
        trace_id="",
        at_unix_ms=now_ms,
        admitted_unix_ms=now_ms - 5000,
        price_book="list@1",
        plan="llama-3.1-8b:1",
    )
