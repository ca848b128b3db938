"""What `tokenworks up` shows once the mesh stands: a first text, and the bundled traffic with its report.

In: the access to a running mesh. Out: `FirstText`, and the report's document.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Final

from services.cli.access import DEFAULT_TENANT, Access
from services.cli.casting import Casting
from services.cli.demo_trace import SIMULATED_MODEL, TENANTS
from services.cli.drive import Plan, drive
from services.cli.output import CommandFailed, Output
from services.cli.report import Document
from services.mesh.settings import SloSettings
from services.twin.traces import TraceRequest, read
from tokenworks import CallError, Client
from tokenworks.v1 import inference_pb2 as wire

FIRST_PROMPT: Final = "Tell me about the sea in one sentence."
_FIRST_TOKENS: Final = 40
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class FirstText:
    """The first text that a mesh made; `asked_after_s` is from the start to the question, `ttft_s` from there."""

    text: str
    model: str
    simulated: bool
    asked_after_s: float
    ttft_s: float
    trace_id: str


def demo_requests() -> list[TraceRequest]:
    text = resources.files("services.cli").joinpath("demo_trace.csv").read_text(encoding="utf-8")
    return list(read(text.splitlines(), "demo_trace.csv"))


async def served(client: Client, model: str, workers: int, deadline_s: float) -> wire.Model:
    """Waits until the router knows `workers` workers that serve the model.

    Raises:
        CommandFailed: it does not within `deadline_s`.
    """
    ends_s = time.monotonic() + deadline_s
    seen = 0
    while True:
        try:
            models = {each.name: each for each in await client.models()}
        except CallError as error:
            if not error.passing:
                raise
            models = {}
        if model in models and models[model].workers >= workers:
            return models[model]
        seen = models[model].workers if model in models else 0
        if time.monotonic() > ends_s:
            raise CommandFailed(
                f"the router knows {seen} workers for {model}, and {workers} should serve it; their logs say why",
                reason="ServiceNotStarted",
            )
        await asyncio.sleep(_POLL_S)


async def first_text(access: Access, model: str, started_s: float, deadline_s: float) -> FirstText:
    """Asks the model for a sentence as soon as it is served. Raises GenerateError, CommandFailed."""
    async with Client(access.router, access.keys[DEFAULT_TENANT]) as client:
        found = await served(client, model, 1, deadline_s)
        asked_s = time.monotonic()
        ttft_s = 0.0
        pieces: list[str] = []
        chat = [{"role": "user", "content": FIRST_PROMPT}]
        async with client.generate(
            chat=chat,
            model=model,
            max_tokens=_FIRST_TOKENS,
            temperature=0.0,
            workload="demo/first-text",
            deadline_s=deadline_s,
        ) as stream:
            async for piece in stream:
                ttft_s = ttft_s or time.monotonic() - asked_s
                pieces.append(piece.text)
        return FirstText("".join(pieces).strip(), model, found.simulated, asked_s - started_s, ttft_s, stream.trace_id)


async def replay_demo(
    output: Output,
    access: Access,
    slo: SloSettings,
    *,
    models: Sequence[str],
    real_model: str,
    limit: int,
    interrupted: asyncio.Event,
) -> Document:
    """Plays the bundled traffic.

    Args:
        models: served here, at least one; what the trace asks of another goes to `real_model` where it has words, else
            to the first.
        real_model: answers the trace's questions.
        limit: only so many requests; 0: all.

    Raises:
        CallError: router or meter could not be reached.
    """
    casting = Casting(
        tenants=TENANTS, slo_mix=dict.fromkeys((slo.default,), 1.0), workload="demo", model=SIMULATED_MODEL
    )
    arrivals = [
        casting.cast(_served_here(request, slo, models, real_model), index)
        for index, request in enumerate(demo_requests()[: limit or None])
    ]
    plan = Plan(
        arrivals=arrivals,
        total=len(arrivals),
        keys={tenant: access.keys[tenant] for tenant in TENANTS},
        slo=slo,
        synthesised=lambda: ["the whole demonstration: lengths, words, tenants and promises"],
        max_attempts=4,
    )
    return await drive(output, access, plan, interrupted)


def _served_here(request: TraceRequest, slo: SloSettings, models: Sequence[str], real_model: str) -> TraceRequest:
    model = request.model if request.model in models else real_model if request.prompt else models[0]
    return replace(
        request, model=model, slo_class=request.slo_class if request.slo_class in slo.classes else slo.default
    )
