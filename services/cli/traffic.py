"""Plays arrivals into a mesh as they would have come: an open loop that never waits for an answer.

In: arrivals, and a client per tenant. Out: one `Outcome` per arrival, as its client saw it. Nothing is kept per token.
"""

import asyncio
import time
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Final

from services.cli.casting import Arrival
from services.cli.report import Outcome
from services.twin.traces import prompt_ids, prompt_text
from tokenworks import Client, GenerateError

MOST_OPEN: Final = 20_000  # streams at once; more are not sent, and counted as "ClientFull"


class Player:
    """One run of traffic; `open`, `sent` and `tokens` tell how far it is.

    Args:
        on_outcome: called once per arrival, when its stream has ended.
        speed: > 0; 4 plays the trace four times as fast.
        deadline_s: of one stream.
        in_words: models that take made-up prompts as text, since token ids would mean something else to each engine.
    """

    def __init__(
        self,
        clients: Mapping[str, Client],
        on_outcome: Callable[[Outcome], None],
        *,
        speed: float = 1.0,
        seed: int = 0,
        deadline_s: float = 600.0,
        max_attempts: int = 1,
        in_words: Container[str] = (),
    ) -> None:
        self._clients = clients
        self._on_outcome = on_outcome
        self._speed = speed
        self._seed = seed
        self._deadline_s = deadline_s
        self._max_attempts = max_attempts
        self._in_words = in_words
        self._stopping = False
        self.sent = 0
        self.open = 0
        self.tokens = 0

    def stop(self) -> None:
        """Sends nothing more; what is open runs on."""
        self._stopping = True

    async def play(self, arrivals: Iterable[Arrival]) -> None:
        """Returns when every stream has ended."""
        start_s = time.perf_counter()
        async with asyncio.TaskGroup() as streams:
            for arrival in arrivals:
                due_s = start_s + arrival.request.arrival_s / self._speed
                # Even when late: the streams that are open must be read meanwhile.
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                if self._stopping:
                    break
                self.sent += 1
                if self.open >= MOST_OPEN:
                    self._on_outcome(_not_sent(arrival))
                    continue
                self.open += 1
                streams.create_task(self._stream(arrival, max(0.0, time.perf_counter() - due_s)))

    async def _stream(self, arrival: Arrival, late_s: float) -> None:
        request = arrival.request
        words = [{"role": "user", "content": request.prompt}] if request.prompt else None
        made_up = (request, arrival.index, self._seed)
        as_text = arrival.model in self._in_words
        stream = self._clients[arrival.tenant].generate(
            chat=words,
            text=prompt_text(*made_up) if as_text and not words else None,
            token_ids=None if as_text or words else prompt_ids(*made_up),
            model=arrival.model,
            max_tokens=request.completion_tokens,
            ignore_eos=words is None,
            seed=self._seed,
            slo_class=arrival.slo_class,
            workload=arrival.workload,
            session_id=request.session_id,
            deadline_s=self._deadline_s,
            max_attempts=self._max_attempts,
        )
        sent_s = time.perf_counter()
        first_s = last_s = 0.0
        tokens = 0
        reason = error = ""
        try:
            async for piece in stream:
                last_s = time.perf_counter()
                first_s = first_s or last_s
                tokens += piece.token_count
                self.tokens += piece.token_count
        except GenerateError as failure:
            reason, error = failure.reason, failure.message
        finally:
            self.open -= 1
        result = stream.result
        self._on_outcome(
            Outcome(
                request_id=stream.request_id,
                trace_id=stream.trace_id,
                tenant=arrival.tenant,
                workload=arrival.workload,
                model=arrival.model,
                slo_class=arrival.slo_class,
                prompt_tokens=result.prompt_tokens if result else request.prompt_tokens,
                cached_prompt_tokens=result.cached_prompt_tokens if result else 0,
                completion_tokens=tokens,
                ttft_s=first_s - sent_s if tokens else None,
                tpot_s=(last_s - first_s) / (tokens - 1) if tokens > 1 else None,
                e2e_s=time.perf_counter() - sent_s,
                late_s=late_s,
                reason=reason or (result.reason if result else "cancelled"),
                error=error,
                price_nusd=result.price_nusd if result else 0,
                segments=tuple((each.worker, each.accelerator, each.count) for each in result.segments)
                if result
                else (),
            )
        )


def _not_sent(arrival: Arrival) -> Outcome:
    return Outcome(
        request_id="",
        trace_id="",
        tenant=arrival.tenant,
        workload=arrival.workload,
        model=arrival.model,
        slo_class=arrival.slo_class,
        prompt_tokens=arrival.request.prompt_tokens,
        reason="ClientFull",
        error=f"{MOST_OPEN} streams are open in this client already; replay with a lower --speed",
    )
