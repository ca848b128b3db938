"""Drives a run of traffic through a live mesh, showing how far it is, and comes back with the report's document.

In: arrivals and the access to a mesh. Out: the document of `report.Run`, with the meter's side settled.
"""

import asyncio
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from services.cli.access import Access
from services.cli.books import Bookkeeper
from services.cli.casting import Arrival
from services.cli.output import Output
from services.cli.peers import Peers
from services.cli.report import Document, Promise, Run
from services.cli.tracing import client_tracer
from services.cli.traffic import Player
from services.mesh.settings import SloSettings
from tokenworks import Client
from tokenworks.errors import CallError

_REDRAW_S: Final = 0.25
_LINE_S: Final = 5.0  # between lines of progress where nothing can be redrawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run to drive.

    Attributes:
        total: arrivals to come.
        keys: tenant -> key, for every tenant among the arrivals.
        synthesised: asked after the run what was made up.
        direct: stream from the workers, or through the router.
        settle_s: >= 0; how long to wait for the meter after the last stream.
    """

    arrivals: Iterable[Arrival]
    total: int
    keys: Mapping[str, str]
    slo: SloSettings
    synthesised: Callable[[], Sequence[str]] = tuple
    speed: float = 1.0
    seed: int = 0
    deadline_s: float = 600.0
    max_attempts: int = 1
    direct: bool = True
    settle_s: float = 30.0


async def drive(output: Output, access: Access, plan: Plan, interrupted: asyncio.Event) -> Document:
    """Plays the whole run; once `interrupted` is set, nothing more is sent and what is open runs on.

    Raises:
        CallError: router or meter could not be reached at the start.
    """
    run = Run(
        promises={
            name: Promise(ttft_s=each.ttft_s, ttft_s_per_prompt_token=each.ttft_s_per_prompt_token, tpot_s=each.tpot_s)
            for name, each in plan.slo.classes.items()
        }
    )
    async with AsyncExitStack() as stack:
        peers = await stack.enter_async_context(Peers(access))
        bookkeeper = Bookkeeper(peers)
        await bookkeeper.begin()
        tracer = stack.enter_context(client_tracer(access.traces))
        clients = {
            tenant: await stack.enter_async_context(Client(access.router, key, direct=plan.direct, tracer=tracer))
            for tenant, key in plan.keys.items()
        }
        for client in clients.values():
            await client.connected()
        served = await next(iter(clients.values())).models()
        player = Player(
            clients,
            run.add,
            speed=plan.speed,
            seed=plan.seed,
            deadline_s=plan.deadline_s,
            max_attempts=plan.max_attempts,
            in_words={model.name for model in served if not model.simulated},
        )
        started_s, cpu_started_s = time.perf_counter(), _cpu_s()
        with _progress(output) as progress:
            async with asyncio.TaskGroup() as tasks:
                beside = (_show(output, progress, player, run, plan.total), _stop_when(interrupted, player))
                watching = [tasks.create_task(each) for each in beside]
                await player.play(plan.arrivals)
                for task in watching:
                    task.cancel()
        duration_s, cpu_s = time.perf_counter() - started_s, _cpu_s() - cpu_started_s
        run.synthesised = plan.synthesised()
        workloads = {each.workload for each in run.outcomes}
        try:
            books = await bookkeeper.settle(workloads, run.completion_tokens, run.finished, plan.settle_s)
        except CallError as error:
            output.say(f"[red]{error}[/]")
            books = None
    return run.document(books, duration_s=duration_s, cpu_s=cpu_s)


def failed_because(document: Document) -> str:
    """Why a run counts as failed, in words; empty when it does not."""
    failed = document["requests"]["failed"]
    if failed:
        return f"{failed} requests failed"
    if document["meter"] is None:
        return "the meter could not be asked"
    return "" if document["meter"]["equal"] else "clients and meter differ"


@contextmanager
def _progress(output: Output) -> Iterator[Progress]:
    with Progress(
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("requests ended · {task.description}"),
        TimeElapsedColumn(),
        console=output.console,
        disable=not output.live,
        refresh_per_second=1 / _REDRAW_S,
        transient=True,
    ) as progress:
        yield progress


async def _show(output: Output, progress: Progress, player: Player, run: Run, total: int) -> None:
    task: TaskID = progress.add_task("", total=total)
    started_s = told_s = time.perf_counter()
    tokens, before_s = 0, started_s
    while True:
        await asyncio.sleep(_REDRAW_S)
        now_s = time.perf_counter()
        rate = (player.tokens - tokens) / (now_s - before_s)
        words = f"{player.open:,} open · {rate:,.0f} tokens/s"
        progress.update(task, completed=len(run.outcomes), description=words)
        if not output.live and now_s - told_s >= _LINE_S:
            told_s = now_s
            output.say(f"{len(run.outcomes):,}/{total:,} requests ended · {words} · {now_s - started_s:.0f} s")
        tokens, before_s = player.tokens, now_s


async def _stop_when(interrupted: asyncio.Event, player: Player) -> None:
    await interrupted.wait()
    player.stop()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
