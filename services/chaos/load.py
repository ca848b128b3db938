"""The load: clients that ask one question after the other, direct and relayed, and hold each answer against the
undisturbed one.

In: routers and keys. Out: `Outcome`s. Half of the clients stream from workers, half through a router; each begins with
another router. One more client spends a small budget, and goes on asking when it is spent.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random
from typing import Final

from services.chaos.core.streams import Heard, Outcome, Question, wrong_with
from services.chaos.ground import Ground
from tokenworks import Client, GenerateError

WORKLOAD: Final = "chaos"
_DEADLINE_S: Final = 120.0
_ATTEMPTS: Final = 40  # calls while nothing has come and waiting can help
_QUESTIONS: Final = 16
_SHORTEST, _LONGEST = 48, 320  # tokens
_OUT_OF_CREDIT: Final = "CreditExhausted"
_REFUSED: Final = frozenset({_OUT_OF_CREDIT, "QueueFull", "NoWorker", "OutboxFull"})
_AFTER_REFUSAL_S: Final = 0.5


def questions(seed: int) -> tuple[Question, ...]:
    """What is asked; no two alike."""
    rng = Random(seed)
    return tuple(
        Question(number, f"Question {number} of {seed}: tell of rivers", number, rng.randint(_SHORTEST, _LONGEST))
        for number in range(_QUESTIONS)
    )


class Load:
    """Streams at a running mesh. Use `async with`; `learn` before `run`.

    Args:
        tenant, capped: names of tenants that the ground has keys of; `capped` has a budget, and is empty for none.

    Attributes:
        outcomes: of streams that have ended.
    """

    def __init__(self, ground: Ground, asked: Sequence[Question], tenant: str, capped: str) -> None:
        self.outcomes: list[Outcome] = []
        self._ground = ground
        self._questions = list(asked)
        self._tenant = tenant
        self._capped = capped
        self._stack = AsyncExitStack()
        self._clients: dict[tuple[str, bool], list[Client]] = {}

    async def __aenter__(self) -> "Load":
        routers = list(self._ground.routers)
        for tenant in filter(None, (self._tenant, self._capped)):
            for direct in (True, False):
                turned = [routers[first:] + routers[:first] for first in range(len(routers))]
                self._clients[tenant, direct] = [
                    await self._stack.enter_async_context(
                        Client(
                            each,
                            self._ground.keys[tenant],
                            direct=direct,
                            deadline_s=_DEADLINE_S,
                            max_attempts=_ATTEMPTS,
                        )
                    )
                    for each in turned
                ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def learn(self) -> int:
        """Asks every question undisturbed and keeps its answer; what the dearest of them cost, nano-dollars.

        Raises:
            GenerateError: one was not answered.
        """
        prices = await asyncio.gather(*(self._learn(number) for number in range(len(self._questions))))
        return max(prices)

    async def run(self, streams: int, seed: int, over: asyncio.Event) -> None:
        """Keeps `streams` streams running until `over` is set, then lets them end."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(streams):
                rng = Random(f"{seed} {number}")
                tasks.create_task(self._ask_on(self._tenant, number, rng, over), name=f"client {number}")
            if self._capped:
                tasks.create_task(self._ask_on(self._capped, 0, Random(seed), over), name="client with a budget")

    async def ask(self, tenant: str, question: int, *, direct: bool, which: int = 0) -> Outcome:
        """One stream, from its first token to its last; nothing is raised."""
        asked = self._questions[question]
        clients = self._clients[tenant, direct]
        generation = clients[which % len(clients)].generate(
            text=asked.text,
            model=self._ground.model,
            max_tokens=asked.max_tokens,
            temperature=0.0,
            seed=asked.seed,
            ignore_eos=True,
            workload=WORKLOAD,
        )
        heard = Heard(time.monotonic())
        refused = wrong = ""
        unfunded = False
        async with generation:
            try:
                async for piece in generation:
                    heard.piece(piece.first_index, piece.token_count, piece.text, time.monotonic())
            except GenerateError as error:
                if not heard.tokens and error.reason in _REFUSED:
                    refused = error.reason
                elif error.reason == _OUT_OF_CREDIT and tenant == self._capped:
                    wrong = wrong_with(heard, asked.answer, heard.tokens, cut_short=True)
                else:
                    wrong = f"failed after {heard.tokens} tokens: {error.reason}: {error.message}"
        result = generation.result
        if result is not None:
            unfunded = tenant == self._capped and result.reason == "budget"
            wrong = wrong_with(heard, asked.answer or heard.text, result.completion_tokens, cut_short=unfunded)
        return Outcome(
            request_id=generation.request_id,
            tenant=tenant,
            question=question,
            direct=direct,
            tokens=heard.tokens,
            price_nusd=result.price_nusd if result is not None else 0,
            ttft_s=heard.ttft_s,
            longest_pause_s=heard.longest_pause_s,
            pause_began_s=heard.pause_began_s,
            calls=generation.attempts,
            began_s=heard.began_s,
            ended_s=time.monotonic(),
            worker=result.segments[0].worker if result is not None and result.segments else "",
            refused_because=refused,
            wrong=wrong,
            unfunded=unfunded,
        )

    async def _learn(self, number: int) -> int:
        asked = self._questions[number]
        client = self._clients[self._tenant, False][0]
        async with client.generate(
            text=asked.text,
            model=self._ground.model,
            max_tokens=asked.max_tokens,
            temperature=0.0,
            seed=asked.seed,
            ignore_eos=True,
            workload=f"{WORKLOAD}/undisturbed",
        ) as generation:
            answer = await generation.text()
        assert generation.result is not None, "it ended by itself"
        self._questions[number] = replace(asked, answer=answer)
        return generation.result.price_nusd

    async def _ask_on(self, tenant: str, number: int, rng: Random, over: asyncio.Event) -> None:
        while not over.is_set():
            question = rng.randrange(len(self._questions))
            outcome = await self.ask(tenant, question, direct=number % 2 == 0, which=number // 2)
            number += 2 if tenant == self._tenant else 1  # the one client with a budget goes both ways
            self.outcomes.append(outcome)
            if outcome.refused_because:
                await asyncio.sleep(_AFTER_REFUSAL_S)
