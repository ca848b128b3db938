"""What is done to a router, and what is read off it. Each scenario gives a dict of figures, plain enough for JSON.

Costs are CPU microseconds of the router's processes, user and system, beyond what it takes at rest (health checks,
heartbeats), which is a figure of its own.
"""

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench.datapath.fit import Run, fit_cost
from bench.datapath.orders import Order, Outcome
from bench.datapath.subject import Running

STREAMS: Final = (8, 64, 256)
STEPS_MS: Final = (20.0, 0.0)
TOKENS: Final = (1, 32, 256)
_AT_REST_S: Final = 1.5
_LEAST_REQUESTS: Final = {1: 256, 32: 32, 256: 0}
_LIMIT_S: Final = {1: 4.0, 32: 5.0, 256: 8.0}
_SPREAD_S: Final = 0.2
_QUIET_US: Final = 10_000.0
_QUIET_S: Final = 0.1
_SETTLE_S: Final = 4.0
_THROUGHPUT_S: Final = 5.0


class Load:
    """The load process (`load.py`): one order at a time."""

    def __init__(self, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.datapath.load"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._log = log

    def begin(self, order: Order) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()

    def finish(self) -> Outcome:
        """What came of the order that was begun."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load ended by itself; see {self._log}")
        return Outcome(**json.loads(line))

    def carry_out(self, order: Order) -> Outcome:
        self.begin(order)
        return self.finish()

    def stop(self) -> None:
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True, slots=True)
class Bench:
    """A running router and the load on it."""

    running: Running
    load: Load

    def order(self, **changes: Any) -> Order:
        running = self.running
        return replace(Order(running.kind, running.address, key=running.key, model=running.model), **changes)

    def warm_up(self) -> None:
        """Connections, caches, pools: what only the first requests pay.

        Raises:
            RuntimeError: it answers none of them.
        """
        outcome = self.load.carry_out(self.order(tokens=4, streams=8, requests=64, limit_s=20.0))
        if not outcome.whole:
            raise RuntimeError(f"it answers no request: {outcome.failures or 'all too late'}")
        self.settle()

    def settle(self) -> None:
        """Waits until the router is done with what it was given, some seconds at most."""
        ends_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < ends_s:
            before_s = self.running.cpu_s()
            time.sleep(_QUIET_S)
            if (self.running.cpu_s() - before_s) * 1e6 < _QUIET_US:
                return


def at_rest(bench: Bench) -> dict[str, Any]:
    """CPU microseconds a second without a request."""
    bench.settle()
    before_s, started_s = bench.running.cpu_s(), time.monotonic()
    time.sleep(_AT_REST_S)
    used_s = bench.running.cpu_s() - before_s
    return {"us_per_s": used_s * 1e6 / (time.monotonic() - started_s), "rss_bytes": bench.running.rss_bytes()}


def cost(bench: Bench, streams: int, step_ms: float, at_rest_us_per_s: float) -> dict[str, Any]:
    """Per request and per token, from runs of 1, 32 and 256 tokens per request with `streams` at once."""
    runs, details = [], []
    for tokens in TOKENS:
        before_s, beside, started_s = bench.running.cpu_s(), bench.running.beside_cpu_s(), time.monotonic()
        outcome = bench.load.carry_out(
            bench.order(
                tokens=tokens,
                step_ms=step_ms,
                streams=streams,
                requests=max(streams, _LEAST_REQUESTS[tokens]),
                spread_s=_SPREAD_S if step_ms else 0.0,
                limit_s=_LIMIT_S[tokens],
            )
        )
        bench.settle()
        cpu_us = (bench.running.cpu_s() - before_s) * 1e6 - at_rest_us_per_s * (time.monotonic() - started_s)
        runs.append(Run(outcome.requests, outcome.tokens, cpu_us))
        besides = {name: (now_s - beside[name]) * 1e6 for name, now_s in bench.running.beside_cpu_s().items()}
        details.append({**asdict(outcome), "tokens_per_request": tokens, "cpu_us": cpu_us, "beside_cpu_us": besides})
    fitted = fit_cost(runs)
    return {
        "streams": streams,
        "step_ms": step_ms,
        "us_per_request": fitted.us_per_request,
        "us_per_token": fitted.us_per_token,
        "us_per_request_of_256": fitted.of(256),
        "failed": sum(each["failed"] for each in details),
        "unfinished": sum(each["unfinished"] for each in details),
        "runs": details,
    }


def first_token(bench: Bench, requests: int, rate: float = 20.0) -> dict[str, Any]:
    """Time to the first token of short answers that come one after the other."""
    outcome = bench.load.carry_out(
        bench.order(tokens=8, step_ms=20.0, rate=rate, requests=requests, limit_s=requests / rate + 10.0)
    )
    bench.settle()
    return asdict(outcome)


def kill_backend(bench: Bench, streams: int = 50, tokens: int = 100) -> dict[str, Any]:
    """One of the backends is SIGKILLed under `streams` streams: how many of them fail."""
    order = bench.order(tokens=tokens, step_ms=20.0, streams=streams, requests=streams, limit_s=20.0)
    bench.load.begin(replace(order, kind="client") if order.kind == "direct" else order)
    time.sleep(tokens * 0.020 / 2)
    bench.running.backends[0].kill()
    outcome = bench.load.finish()
    return {**asdict(outcome), "lost": outcome.failed + outcome.unfinished}


def hold(bench: Bench, streams: int, tokens: int = 40) -> dict[str, Any]:
    """`streams` at once at 5 tokens a second: memory of a stream, failures, gaps."""
    spread_s, step_ms = 4.0, 200.0
    before_bytes, before_s = bench.running.rss_bytes(), bench.running.cpu_s()
    bench.load.begin(
        bench.order(tokens=tokens, step_ms=step_ms, streams=streams, requests=streams, spread_s=spread_s, limit_s=20.0)
    )
    time.sleep(spread_s + (tokens * step_ms / 1000 - spread_s) / 2)  # all have begun, none has ended
    most_bytes = bench.running.rss_bytes()
    outcome = bench.load.finish()
    return {
        **asdict(outcome),
        "streams": streams,
        "errors": outcome.failed + outcome.unfinished,
        "rss_bytes_per_stream": (most_bytes - before_bytes) / streams,
        "rss_bytes": most_bytes,
        "cpu_s": bench.running.cpu_s() - before_s,
    }


def throughput(bench: Bench, streams: int) -> dict[str, Any]:
    """Requests of one token a second that `streams` at once get answered, and what each costs.

    The load and the backends take part of the same cores: as a figure it says little, beside another of the same run it
    says what one more process adds.
    """
    before_s = bench.running.cpu_s()
    outcome = bench.load.carry_out(bench.order(streams=streams, limit_s=_THROUGHPUT_S))
    bench.settle()
    used_us = (bench.running.cpu_s() - before_s) * 1e6
    return {
        **asdict(outcome),
        "streams": streams,
        "rps": outcome.whole / outcome.took_s,
        "us_per_request": used_us / max(1, outcome.whole),
        "router_cores": used_us / 1e6 / outcome.took_s,
        "client_cores": outcome.client_cpu_s / outcome.took_s,
    }


def slow_reader(bench: Bench, streams: int) -> dict[str, Any]:
    """Gaps of `streams` readers with and without one more that takes 1 KB/s of a long answer."""
    plain = bench.order(tokens=50, step_ms=100.0, streams=streams, requests=streams, spread_s=1.0, limit_s=6.5)
    without = bench.load.carry_out(plain)
    bench.settle()
    before_bytes = bench.running.rss_bytes()
    bench.load.begin(replace(plain, streams=streams + 1, requests=streams + 1, slow_readers=1))
    rss: list[int] = []
    ends_s = time.monotonic() + 5.5
    while time.monotonic() < ends_s:
        time.sleep(0.5)
        rss.append(bench.running.rss_bytes())
    with_slow = bench.load.finish()
    bench.settle()
    return {
        "without": asdict(without),
        "with": asdict(with_slow),
        "gap_p99_without_ms": without.gap_p99_ms,
        "gap_p99_with_ms": with_slow.gap_p99_ms,
        "rss_growth_bytes": max(rss) - before_bytes,
        "failed": without.failed + with_slow.failed,
    }
