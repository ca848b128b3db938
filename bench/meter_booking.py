"""How fast the meter books: token entries per CPU-second, against a plain `INSERT … ON CONFLICT` per event.

    python -m bench.meter_booking [--streams 1000] [--seconds 20] [--workers 7] [--batch-ms 100] [--out FILE]

Both book the same traffic into SQLite files in the same directory, with the write-ahead log synced at every commit.
The traffic: `streams` requests run at any time, spread over `workers`; each worker reports every 50 ms, one entry per
request that got tokens; a request that ends is replaced by a new one. The meter books what came within `batch-ms` in
one transaction, with marks, requests, segments, ledger, usage and budgets. The plain way keeps one row per request and
adds each entry to it, a transaction each (`per event`) or one per batch (`per batch`); it knows no duplicates, no
prices, no ranges. CPU seconds are those of the process, without making the traffic.
"""

import argparse
import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.record import hardware
from services.mesh.bus import Delivered, EventId
from services.mesh.events import Event, RequestAdmitted, RequestFinished, TokenEntry, TokensGenerated
from services.mesh.price_book import PriceBook
from services.mesh.subjects import channel_of, subject_of
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.costs import RateCard
from services.meter.store.database import Database

REPORT_MS = 50
START_MS = 1_700_000_040_000
ACCELERATORS = ("nvidia-h100-sxm", "amd-mi300x", "intel-gaudi3", "google-tpu-v6e", "aws-trainium2", "nvidia-l4")

PLAIN = """
INSERT INTO used (request_id, tenant, model, worker, tokens, device_ns, energy_uj) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (request_id) DO UPDATE SET tokens = tokens + excluded.tokens,
    device_ns = device_ns + excluded.device_ns, energy_uj = energy_uj + excluded.energy_uj
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One way of booking; times in seconds."""

    way: str
    entries: int
    transactions: int
    cpu_s: float
    wall_s: float
    lag_p99_s: float

    @property
    def entries_per_cpu_s(self) -> float:
        return self.entries / self.cpu_s


class Traffic:
    """Batches of messages as the bus would deliver them; the same for the same arguments."""

    def __init__(self, streams: int, workers: int, batch_ms: int, seconds: float) -> None:
        self._random = random.Random(1)
        self._workers = workers
        self._batch_ms = batch_ms
        self._end_ms = START_MS + int(seconds * 1000)
        self._made = 0
        self._sequences: dict[str, int] = {}
        self._running = [self._new() for _ in range(streams)]

    def batches(self) -> Iterator[list[Delivered]]:
        now_ms, batch = START_MS, list[Delivered]()
        while now_ms < self._end_ms:
            now_ms += REPORT_MS
            batch += self._tick(now_ms)
            if (now_ms - START_MS) % self._batch_ms == 0:
                yield batch
                batch = []

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

    def _tick(self, now_ms: int) -> list[Delivered]:
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
        return [self._delivered(publisher, event) for publisher, event in events]

    def _delivered(self, publisher: str, event: Event) -> Delivered:
        sequence = self._sequences[publisher] = self._sequences.get(publisher, 0) + 1
        assert channel_of(event).stream
        return Delivered(EventId(publisher, "epoch", sequence), event, subject_of(event))


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


def _measure(way: str, traffic: Traffic, book: Callable[[Sequence[Delivered]], int], batch_ms: int) -> Measured:
    """Books all traffic as fast as it goes; the lag counts the wait for the batch and its transaction(s)."""
    entries = transactions = 0
    cpu_s = wall_s = 0.0
    walls = []
    for batch in traffic.batches():
        started_cpu_s, started_s = time.process_time(), time.perf_counter()
        transactions += book(batch)
        walls.append(time.perf_counter() - started_s)
        cpu_s += time.process_time() - started_cpu_s
        wall_s += walls[-1]
        entries += sum(len(each.event.entries) for each in batch if isinstance(each.event, TokensGenerated))
    lag_p99_s = batch_ms / 1000 + sorted(walls)[int(len(walls) * 0.99)]
    return Measured(way, entries, transactions, cpu_s, wall_s, lag_p99_s)


def _meter(folder: Path) -> Callable[[Sequence[Delivered]], int]:
    database = Database(f"sqlite:///{folder / 'meter.db'}")
    card = RateCard(dict.fromkeys(ACCELERATORS, 2_690_000_000), 80_000_000)
    keeper = Bookkeeper(database, "bench", PriceBook(), card, START_MS)

    def book(batch: Sequence[Delivered]) -> int:
        keeper.book(batch, START_MS)
        return 1

    return book


def _plain(folder: Path, *, per_event: bool) -> Callable[[Sequence[Delivered]], int]:
    connection = sqlite3.connect(folder / f"plain-{per_event}.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE used (request_id TEXT PRIMARY KEY, tenant TEXT, model TEXT, worker TEXT, tokens INTEGER,"
        " device_ns INTEGER, energy_uj INTEGER)"
    )

    def book(batch: Sequence[Delivered]) -> int:
        transactions = 0
        if not per_event:
            connection.execute("BEGIN IMMEDIATE")
        for message in batch:
            event = message.event
            if isinstance(event, TokensGenerated):
                for each in event.entries:
                    values = (each.request_id, each.tenant, each.model, event.worker, each.count)
                    connection.execute(PLAIN, (*values, each.device_ns, each.energy_uj))
                    transactions += per_event
        if not per_event:
            connection.execute("COMMIT")
            transactions = 1
        return transactions

    return book


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="of traffic")
    parser.add_argument("--batch-ms", type=int, default=100, help="a multiple of 50")
    parser.add_argument("--folder", type=Path, help="where the databases go; a temporary folder by default")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()

    def traffic(seconds: float) -> Traffic:
        return Traffic(args.streams, args.workers, args.batch_ms, seconds)

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        measured = [
            _measure("meter", traffic(args.seconds), _meter(folder), args.batch_ms),
            _measure("plain, per event", traffic(args.seconds / 10), _plain(folder, per_event=True), args.batch_ms),
            _measure("plain, per batch", traffic(args.seconds), _plain(folder, per_event=False), args.batch_ms),
        ]
        stored_bytes = (folder / "meter.db").stat().st_size
    print(f"{'way':<18}{'entries':>9}{'commits':>9}{'CPU s':>8}{'wall s':>8}{'entries/CPU s':>15}{'lag p99 ms':>12}")
    for each in measured:
        print(
            f"{each.way:<18}{each.entries:>9}{each.transactions:>9}{each.cpu_s:>8.2f}{each.wall_s:>8.2f}"
            f"{each.entries_per_cpu_s:>15,.0f}{each.lag_p99_s * 1000:>12.0f}"
        )
    ratio = measured[0].entries_per_cpu_s / measured[1].entries_per_cpu_s
    print(f"meter / plain per event: {ratio:.1f} x; books: {stored_bytes / measured[0].entries:.0f} bytes per entry")
    if args.out:
        figures = {
            "hardware": hardware(),
            "sqlite": sqlite3.sqlite_version,
            "streams": args.streams,
            "batch_ms": args.batch_ms,
            "ways": [{**asdict(each), "entries_per_cpu_s": each.entries_per_cpu_s} for each in measured],
            "ratio_to_plain_per_event": ratio,
        }
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
