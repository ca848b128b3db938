"""How long questions about long times take: a year of hours, a thousand tenants.

    python -m bench.usage_questions [--tenants 1000] [--hours 8760] [--active 0.05] [--rounds 3] [--out FILE]

In: books (SQLite, and PostgreSQL where one is installed) whose hours are added up, in each of which `active` of the
tenants have used one of four models on one of two accelerators. Out: milliseconds per question, the median of the
rounds, by wall clock; they are asked in turn, so what disturbs the machine disturbs all of them alike.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

from bench.record import write
from services.meter.core.amounts import Amounts
from services.meter.core.usage import Grouping, grouping
from services.meter.store.bulk import Values, upsert
from services.meter.store.database import Database
from services.meter.store.dropped import put_hour
from services.meter.store.hours import USAGE, usage_hours
from services.meter.store.questions import Questions
from tests.postgres import find_binaries, new_database, running_postgres

_FIRST_HOUR: Final = 500_000  # since 1970
_MODELS: Final = ("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b", "mistral-small")
_ACCELERATORS: Final = ("nvidia-h100-sxm", "amd-mi300x")
_ROWS_A_WRITE: Final = 20_000
_MOST_ROWS: Final = 100_000
_DAY: Final = 24


def _rows(tenants: int, hours: int, active: float) -> Iterator[Values]:
    random = Random(1)
    amounts = Amounts(*range(1, len(Amounts._fields) + 1))
    for hour in range(_FIRST_HOUR, _FIRST_HOUR + hours):
        for number in sorted(random.sample(range(tenants), max(1, int(tenants * active)))):
            accelerator = random.choice(_ACCELERATORS)
            worker = f"{accelerator}-{random.randrange(4)}"
            tenant, workload = f"tenant-{number:04}", f"workload-{number % 3}"
            yield hour, tenant, workload, random.choice(_MODELS), accelerator, worker, accelerator, "standard", *amounts


def _fill(database: Database, tenants: int, hours: int, active: float) -> int:
    put, count = upsert(database.writer.dialect, usage_hours), 0
    rows = _rows(tenants, hours, active)
    with database.writer.begin() as connection:
        while some := [row for row, _ in zip(rows, range(_ROWS_A_WRITE), strict=False)]:
            put.write(connection, some)
            count += len(some)
        put_hour(connection, USAGE, _FIRST_HOUR + hours)
    return count


def _questions(hours: int) -> dict[str, tuple[Grouping, int]]:
    """By name, each with the hours back from the end that it asks about."""
    one = [("tenant", ["tenant-0007"])]
    return {
        "the year, in all": (Grouping(), hours),
        "the year, by tenant": (grouping(("tenant",), []), hours),
        "the year, by model and accelerator": (grouping(("model", "accelerator"), []), hours),
        "the year, one tenant": (grouping((), one), hours),
        "the year, one tenant by day": (grouping(("day",), one), hours),
        "30 days, by tenant": (grouping(("tenant",), []), 30 * _DAY),
        "30 days, one tenant by hour": (grouping(("hour",), one), 30 * _DAY),
        "a day, by tenant and model": (grouping(("tenant", "model"), []), _DAY),
    }


def _measure(database: Database, hours: int, rounds: int) -> dict[str, float]:
    questions, took_ms = Questions(database), dict[str, list[float]]()
    end = (_FIRST_HOUR + hours) * 60
    for _ in range(rounds):
        for name, (asked, back) in _questions(hours).items():
            started_s = time.perf_counter()
            assert questions.usage(asked, end - back * 60, end, _MOST_ROWS), name
            took_ms.setdefault(name, []).append((time.perf_counter() - started_s) * 1000)
    return {name: median(times) for name, times in took_ms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.usage_questions", description=__doc__)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--hours", type=int, default=8760)
    parser.add_argument("--active", type=float, default=0.05, help="part of the tenants that use anything in an hour")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {"sqlite": f"sqlite:///{folder / 'usage.db'}"}
        if (binaries := find_binaries()) is None:
            print("postgresql: not installed, left out")
        else:
            server = stack.enter_context(running_postgres(folder / "postgres", binaries))
            urls["postgresql"] = new_database(server, "usage")
        for store, url in urls.items():
            database = Database(url)
            stack.callback(database.close)
            rows = _fill(database, args.tenants, args.hours, args.active)
            print(f"{store}: {args.tenants} tenants, {args.hours} hours, {rows:,} rows")
            found[store] = {"rows": rows, "ms": _measure(database, args.hours, args.rounds)}
            for name, ms in found[store]["ms"].items():
                print(f"  {name:<36}{ms:>10,.1f} ms")
    write("usage_questions", {"tenants": args.tenants, "hours": args.hours, "active": args.active, "stores": found})


if __name__ == "__main__":
    main()
