"""How fast the meter books: token entries per CPU-second, against a plain `INSERT … ON CONFLICT` per event.

    python -m bench.meter_booking [--streams 1000] [--seconds 20] [--workers 7] [--batch 512] [--flat N] [--out FILE]

A token entry is what a worker reports of one request every 50 ms: a run of some tokens, with device time and energy.
The traffic: `streams` requests run at any time, spread over `workers`; a request that ends is replaced by a new one.
Every way gets the same messages as the bus has them, encoded, and what it spends on decoding counts. CPU seconds are
those of the process and, for PostgreSQL, of the server; making the traffic does not count.

1. Speed, of what has piled up: the meter books up to `batch` messages in one transaction, with marks, requests,
   segments, ledger, usage and budgets. The plain program keeps one row per request and adds each entry to it, in a
   transaction each (`per event`) or one per batch (`per batch`); it knows no duplicates, no prices, no ranges. All
   three take turns, so what disturbs the machine is in each of them. SQLite syncs the disk at every commit. PostgreSQL
   is a server of the benchmark's own, where one is installed; it does not sync, which is to the plain program's
   advantage.
2. Lag, in real time, of 20,000 tokens a second: from when a message is due until its transaction is committed, with
   all of it on one core. Batches are as the meter's feed makes them: one begins 50 ms after the last did, or at once.
   Beside it what a batch costs, and how late the machine ends a sleep, which is in the lag and none of the meter's.
3. Flatness: `--flat` entries, by the million, in either database: speed, size of the books, memory.
"""

import argparse
import gc
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg

from bench.meter_traffic import ACCELERATORS, REPORT_MS, START_MS, Message, Traffic
from bench.record import hardware
from services.mesh.events import TokensGenerated
from services.mesh.price_book import PriceBook
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.costs import RateCard
from services.meter.store.database import Database
from tests.postgres import find_binaries, new_database, running_postgres
from tokenworks.v1 import events_pb2

LAG_TOKENS_PER_S: Final = 20_000
LAG_PACE_S: Final = 0.05
TOKENS_PER_REPORT: Final = 3  # of one stream, in the mean
ROUNDS: Final = 10
COLLECT_AFTER: Final = (20_000, 50, 100)  # as the meter's process does

PLAIN = """
INSERT INTO used (request_id, tenant, model, worker, tokens, device_ns, energy_uj) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (request_id) DO UPDATE SET tokens = used.tokens + excluded.tokens,
    device_ns = used.device_ns + excluded.device_ns, energy_uj = used.energy_uj + excluded.energy_uj
"""
PLAIN_TABLE = """
CREATE TABLE used (request_id TEXT PRIMARY KEY, tenant TEXT, model TEXT, worker TEXT, tokens BIGINT, device_ns BIGINT,
    energy_uj BIGINT)
"""


Book = Callable[[Sequence[Message]], int]


@dataclass(slots=True)
class Measured:
    """One way of booking; times in seconds. `server_cpu_s`: the database's, where it is another process."""

    way: str
    entries: int = 0
    transactions: int = 0
    cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    wall_s: float = 0.0

    @property
    def entries_per_cpu_s(self) -> float:
        return self.entries / (self.cpu_s + self.server_cpu_s)


def _meter(url: str) -> Book:
    card = RateCard(dict.fromkeys(ACCELERATORS, 2_690_000_000), 80_000_000)
    keeper = Bookkeeper(Database(url), "bench", PriceBook(), card, START_MS)

    def book(batch: Sequence[Message]) -> int:
        keeper.book([each.delivered() for each in batch], START_MS)
        return 1

    return book


def _plain(url: str, *, per_event: bool) -> Book:
    connection: Any
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        insert = PLAIN
    else:
        connection = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True)
        insert = PLAIN.replace("?", "%s")
    connection.execute(PLAIN_TABLE)

    def book(batch: Sequence[Message]) -> int:
        transactions = 0
        if not per_event:
            connection.execute("BEGIN")
        for message in batch:
            if message.kind is TokensGenerated:
                event = events_pb2.TokensGenerated.FromString(message.body)
                for each in event.entries:
                    values = (each.request_id, each.tenant, each.model, event.worker, each.count)
                    connection.execute(insert, (*values, each.device_ns, each.energy_uj))
                    transactions += per_event
        if not per_event:
            connection.execute("COMMIT")
            transactions = 1
        return transactions

    return book


def _server_cpu_s(server: psutil.Process | None) -> float:
    """CPU seconds of a server, its processes and those of them that have ended."""
    if server is None:
        return 0.0
    own = server.cpu_times()
    spent_s = own.user + own.system + own.children_user + own.children_system
    for child in server.children():
        times = child.cpu_times()
        spent_s += times.user + times.system
    return spent_s


class Runner:
    """One way of booking `entries`, `batch` messages at a time."""

    def __init__(self, way: str, book: Book, traffic: Traffic, *, entries: float, batch: int) -> None:
        self.measured = Measured(way)
        self._book = book
        self._entries = entries
        self._batch = batch
        self._messages = traffic.messages()

    def run(self, until: float, server: psutil.Process | None) -> None:
        """Books until this part of its entries is done, as fast as it goes."""
        measured, batch = self.measured, self._batch
        while measured.entries < self._entries * until:
            some = [next(self._messages) for _ in range(batch)]
            before, server_before_s = time.process_time(), _server_cpu_s(server)
            started_s = time.perf_counter()
            measured.transactions += self._book(some)
            measured.wall_s += time.perf_counter() - started_s
            measured.cpu_s += time.process_time() - before
            measured.server_cpu_s += _server_cpu_s(server) - server_before_s
            measured.entries += sum(each.entries for each in some)


def _lag(url: str, workers: int, seconds: float, batch: int) -> dict[str, float]:
    """Books in real time on one core; milliseconds from when messages are due until they are committed."""
    streams = LAG_TOKENS_PER_S * REPORT_MS // 1000 // TOKENS_PER_REPORT
    ahead = Traffic(streams, workers).messages()
    messages: list[Message] = []
    while not messages or messages[-1].due_ms < START_MS + seconds * 1000:
        messages.append(next(ahead))
    book = _meter(url)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    lags_ms: list[float] = []
    late_ms: list[float] = []
    batches_ms: list[float] = []
    at, started_s, started_cpu_s = 0, time.perf_counter(), time.process_time()
    while at < len(messages):
        now_ms = (time.perf_counter() - started_s) * 1000
        next_s = time.perf_counter() + LAG_PACE_S  # from one batch's beginning to the next one's, as in the feed
        end = at
        while end < len(messages) and end - at < batch and messages[end].due_ms - START_MS <= now_ms:
            end += 1
        behind = end - at == batch
        if end > at:
            book(messages[at:end])
            done_ms = (time.perf_counter() - started_s) * 1000
            batches_ms.append(done_ms - now_ms)
            lags_ms += [done_ms - (each.due_ms - START_MS) for each in messages[at:end] for _ in range(each.entries)]
            at = end
        if (early_s := next_s - time.perf_counter()) > 0 and not behind:
            time.sleep(early_s)
            late_ms.append((time.perf_counter() - next_s) * 1000)
    cpu_s, wall_s = time.process_time() - started_cpu_s, time.perf_counter() - started_s
    os.sched_setaffinity(0, cores)
    return {
        "tokens_per_s": LAG_TOKENS_PER_S,
        "entries_per_s": len(lags_ms) / wall_s,
        "core": cpu_s / wall_s,
        "p50_ms": _at(lags_ms, 0.5),
        "p99_ms": _at(lags_ms, 0.99),
        "batches": len(batches_ms),
        "batch_cpu_ms": cpu_s * 1000 / len(batches_ms),
        "batch_p50_ms": _at(batches_ms, 0.5),
        "batch_p99_ms": _at(batches_ms, 0.99),
        "machine_late_p99_ms": _at(late_ms, 0.99),
    }


def _at(values: Sequence[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)] if values else 0.0


def _flat(
    url: str,
    size_bytes: Callable[[], int],
    traffic: Traffic,
    *,
    entries: int,
    batch: int,
    server: psutil.Process | None,
) -> list[dict[str, float]]:
    """Speed, books and memory after each million."""
    book, messages, told = _meter(url), traffic.messages(), list[dict[str, float]]()
    booked, part, cpu_s = 0, 0, 0.0
    while booked < entries:
        some = [next(messages) for _ in range(batch)]
        before = time.process_time() + _server_cpu_s(server)
        book(some)
        cpu_s += time.process_time() + _server_cpu_s(server) - before
        part += sum(each.entries for each in some)
        if part >= 1_000_000 or booked + part >= entries:
            booked += part
            memory_mb = psutil.Process().memory_info().rss / 1e6
            books_mb = size_bytes() / 1e6
            told.append({"entries": booked, "per_cpu_s": part / cpu_s, "books_mb": books_mb, "memory_mb": memory_mb})
            print(f"{booked:>12,} {part / cpu_s:>12,.0f} entries/CPU s {books_mb:>9,.0f} MB {memory_mb:>7,.0f} MB RSS")
            part, cpu_s = 0, 0.0
    return told


def _database_bytes(url: str) -> int:
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql")) as connection:
        (size,) = connection.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
    return int(size)


def _in_store(
    store: str, new_url: Callable[[str], str], args: argparse.Namespace, server: psutil.Process | None
) -> Any:
    """Speed and lag in one database."""
    entries = int(args.seconds * 1000 / REPORT_MS * args.streams)

    runners = [
        Runner(way, book, Traffic(args.streams, args.workers), entries=entries * share, batch=batch)
        for way, book, share, batch in (
            ("meter", _meter(new_url("meter")), 1.0, args.batch),
            ("plain, per event", _plain(new_url("plain1"), per_event=True), 0.05, ROUNDS),
            ("plain, per batch", _plain(new_url("plain2"), per_event=False), 0.5, args.batch),
        )
    ]
    # In turns, so that what else the machine does is in all of them alike.
    for done in range(1, ROUNDS + 1):
        for runner in runners:
            runner.run(done / ROUNDS, server)
    measured = [runner.measured for runner in runners]
    for each in measured:
        print(
            f"{store:<12}{each.way:<18}{each.entries:>9}{each.transactions:>9}{each.cpu_s:>8.2f}"
            f"{each.server_cpu_s:>10.2f}{each.wall_s:>8.2f}{each.entries_per_cpu_s:>15,.0f}"
        )
    lag = _lag(new_url("lag"), args.workers, args.lag_seconds, args.batch)
    ratios = [measured[0].entries_per_cpu_s / each.entries_per_cpu_s for each in measured[1:]]
    print(f"{store}: {ratios[0]:.1f} x of plain per event, {ratios[1]:.1f} x of plain per batch")
    print(f"{store}: lag p50 {lag['p50_ms']:.0f} ms, p99 {lag['p99_ms']:.0f} ms, {lag['core']:.0%} of a core")
    print(
        f"{store}: a batch takes {lag['batch_cpu_ms']:.1f} ms of CPU, {lag['batch_p50_ms']:.0f} ms at p50,"
        f" {lag['batch_p99_ms']:.0f} ms at p99; sleeps end {lag['machine_late_p99_ms']:.0f} ms late at p99"
    )
    return {
        "ways": [{**asdict(each), "entries_per_cpu_s": each.entries_per_cpu_s} for each in measured],
        "ratio_to_plain_per_event": ratios[0],
        "ratio_to_plain_per_batch": ratios[1],
        "lag": lag,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="of traffic")
    parser.add_argument("--lag-seconds", type=float, default=10.0, help="of the lag's traffic")
    parser.add_argument("--batch", type=int, default=512, help="messages in a batch at most, as the feed has them")
    parser.add_argument("--flat", type=int, default=0, help="entries to book for flatness; 0: leave it out")
    parser.add_argument("--folder", type=Path, help="where the databases go; a temporary folder by default")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    figures: dict[str, Any] = {"hardware": hardware(), "sqlite_version": sqlite3.sqlite_version}
    figures |= {"streams": args.streams, "workers": args.workers, "batch_messages": args.batch}
    columns = f"{'store':<12}{'way':<18}{'entries':>9}{'commits':>9}{'CPU s':>8}{'server s':>10}{'wall s':>8}"
    print(f"{columns}{'entries/CPU s':>15}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.folder)))
        figures["sqlite"] = _in_store("sqlite", lambda name: f"sqlite:///{folder / name}.db", args, None)
        binaries = find_binaries()
        if binaries is None:
            print("postgresql: not installed, left out")
        else:
            url = stack.enter_context(running_postgres(folder / "postgres", binaries))
            pid = int((folder / "postgres/data/postmaster.pid").read_text(encoding="utf-8").split()[0])
            server = psutil.Process(pid)
            figures["postgresql"] = _in_store("postgresql", lambda name: new_database(url, name), args, server)
            if args.flat:
                print("postgresql, flatness:")
                books = new_database(url, "flat")
                figures["postgresql_flat"] = _flat(
                    books,
                    partial(_database_bytes, books),
                    Traffic(args.streams, args.workers),
                    entries=args.flat,
                    batch=args.batch,
                    server=server,
                )
        if args.flat:
            print("sqlite, flatness:")
            file = folder / "flat.db"
            figures["flat"] = _flat(
                f"sqlite:///{file}",
                lambda: file.stat().st_size,
                Traffic(args.streams, args.workers),
                entries=args.flat,
                batch=args.batch,
                server=None,
            )
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
