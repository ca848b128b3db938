"""What a worker says of a stream that it delivered itself: how far, how quickly, at what price."""

from typing import Any

import pytest

from services.mesh.accelerators import load_catalogue
from services.mesh.errors import CapacityError, EngineFailed, PromptTooLong, QueueFull, TokenworksError, WorkerLost
from services.mesh.placement import PlacementClaims
from services.mesh.pricing import Rates
from services.worker.account import Account
from services.worker.delivery import Delivery
from services.worker.engine import EngineRequest, Prompt, Sampling
from services.worker.identity import Identity
from services.worker.outgoing import Outgoing
from services.worker.requests import Order
from services.worker.stream import Stream
from tokenworks.v1 import inference_pb2 as pb

RATES = Rates(50_000_000, 25_000_000, 100_000_000)
WHO = Identity(worker="h100-0", pool="p", accelerator=load_catalogue().accelerator("nvidia-h100-sxm"), epoch="e-1")
OPENED_S = 100.0


def claims(resume_from: int = 0, waited_s: float = 0.0) -> PlacementClaims:
    return PlacementClaims(
        id="p-1",
        request_id="r-1",
        router="router-0",
        worker="h100-0",
        epoch="e-1",
        tenant="acme",
        model="m",
        slo_class="standard",
        workload="chat",
        plan="m:1",
        price_book="list@1",
        rates=RATES,
        admitted_unix_ms=1,
        resume_from=resume_from,
        funded_tokens=100,
        prompt_tokens=10,
        ttft_promise_s=1.0,
        ttft_promise_s_per_prompt_token=0.01,
        tpot_promise_s=0.1,
        priority=1,
        expires_unix_ms=2,
        waited_s=waited_s,
    )


class Delivered:
    """A stream of 20 prompt tokens, 8 of them cached, and what happens to it."""

    def __init__(self, resume_from: int = 0, waited_s: float = 0.0, **request: Any) -> None:
        engine = EngineRequest(
            sequence=1,
            request_id="r-1",
            model="m",
            prompt=Prompt(text="x"),
            sampling=Sampling(max_tokens=9),
            tenant="acme",
            resume_from=resume_from,
        )
        order = Order(
            tenant="acme",
            workload="chat",
            session_id="",
            slo_class="standard",
            traceparent="",
            plan="m:1",
            engine=engine,
        )
        account = Account(
            request_id="r-1",
            tenant="acme",
            workload="chat",
            model="m",
            slo_class="standard",
            traceparent="",
            from_index=resume_from,
        )
        account.prompt_tokens, account.cached_prompt_tokens = 20, 8
        self.outgoing = Outgoing()
        self.stream = Stream(
            order=order,
            number=1,
            outgoing=self.outgoing,
            account=account,
            span=None,
            opened_s=OPENED_S,
            next_index=resume_from,
        )
        self.delivery = Delivery(
            WHO,
            claims(resume_from, waited_s),
            pb.GenerateRequest(resume_from=resume_from, **request),
            self.stream,
            self.outgoing,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            opened_s=OPENED_S,
        )

    async def token(self, at_s: float) -> None:
        """One token is made, taken, and handed over at `at_s`."""
        chunk = self.outgoing.chunk(1, "r-1", self.stream.next_index)
        chunk.token_count, chunk.text = 1, "t"
        self.stream.next_index += 1
        message = await self.delivery.take()
        assert message is not None
        self.delivery.delivered(message, at_s)

    async def end(self, outcome: str = "length", at_s: float = OPENED_S + 2.0) -> pb.Finish:
        self.stream.end_chunk(WHO, outcome, None)
        message = await self.delivery.take()
        assert message is not None
        self.delivery.delivered(message, at_s)
        assert await self.delivery.take() is None
        return message.finish

    async def fail(self, error: TokenworksError) -> None:
        self.stream.end_chunk(WHO, None, error)
        with pytest.raises(type(error)):
            await self.delivery.take()
        self.delivery.end()

    def said(self) -> Any:
        return self.delivery.finished_event(OPENED_S + 2.0, 7)


async def test_a_stream_that_ends_by_itself_is_told_with_its_range_times_and_price() -> None:
    delivered = Delivered()
    for at_s in (100.5, 100.58, 100.66):
        await delivered.token(at_s)
    finish = await delivered.end()
    assert finish.price_nusd == delivered.delivery.price_nusd == RATES.price_nusd(20, 8, 3)
    said = delivered.said()
    assert (said.delivered_from, said.delivered_count, said.outcome, said.slo_met) == (0, 3, "length", True)
    assert (said.ttft_s, said.tpot_s, said.e2e_s) == pytest.approx((0.5, 0.08, 2.0))
    assert (said.router, said.worker, said.price_book, said.trace_id[:4]) == ("router-0", "h100-0", "list@1", "0af7")


async def test_promises_are_held_against_the_prompt_as_the_worker_counted_it() -> None:
    for ttft_s, kept in ((1.19, True), (1.21, False)):  # 1 s, and 10 ms for each of 20 tokens
        delivered = Delivered()
        await delivered.token(OPENED_S + ttft_s)
        await delivered.end()
        assert delivered.said().slo_met is kept


async def test_what_it_waited_at_its_router_is_part_of_the_time_to_its_first_token() -> None:
    for waited_s, kept in ((0.6, True), (0.8, False)):  # of 1.2 s
        delivered = Delivered(waited_s=waited_s)
        await delivered.token(OPENED_S + 0.5)
        await delivered.token(OPENED_S + 0.58)
        await delivered.end()
        said = delivered.said()
        assert (said.ttft_s, said.tpot_s, said.e2e_s) == pytest.approx((waited_s + 0.5, 0.08, waited_s + 2.0))
        assert said.slo_met is kept


async def test_what_a_client_left_behind_was_not_delivered() -> None:
    delivered = Delivered()
    await delivered.token(100.5)
    delivered.delivery.end()
    said = delivered.said()
    assert (said.delivered_count, said.outcome, said.slo_met) == (1, "cancelled", False)


async def test_a_resumed_leg_speaks_for_the_whole_answer_in_the_clients_times() -> None:
    delivered = Delivered(resume_from=10, resumed_ttft_s=0.4, resumed_s=3.0)
    await delivered.token(100.4)
    await delivered.token(101.0)
    finish = await delivered.end()
    said = delivered.said()
    assert (said.delivered_from, said.delivered_count) == (0, 12)
    assert (said.ttft_s, said.e2e_s) == pytest.approx((0.4, 5.0))
    assert said.tpot_s == pytest.approx((3.0 + 1.0 - 0.4) / 11)
    assert finish.price_nusd == RATES.price_nusd(20, 8, 12)
    assert delivered.delivery.announced, "the first leg announced it"


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1.0, 1e300])
async def test_nonsense_from_a_client_is_not_told_on(nonsense: float) -> None:
    delivered = Delivered(resume_from=1, resumed_ttft_s=nonsense, resumed_s=nonsense)
    await delivered.token(100.5)
    await delivered.end()
    said = delivered.said()
    assert (said.ttft_s, said.e2e_s) == pytest.approx((0.5, 2.0))


@pytest.mark.parametrize("error", [PromptTooLong("long"), QueueFull("full"), CapacityError("x")])
async def test_what_is_refused_before_a_token_leaves_no_trace(error: TokenworksError) -> None:
    delivered = Delivered()
    await delivered.fail(error)
    assert delivered.delivery.refused


async def test_a_stream_that_broke_off_is_told_as_an_error_with_what_had_come() -> None:
    delivered = Delivered()
    await delivered.token(100.5)
    await delivered.fail(EngineFailed("dead"))
    said = delivered.said()
    assert (said.outcome, said.delivered_count, delivered.delivery.refused) == ("error", 1, False)


async def test_an_engine_that_cancels_unasked_means_that_the_worker_goes() -> None:
    delivered = Delivered()
    await delivered.token(100.5)
    delivered.stream.end_chunk(WHO, "cancelled", None)
    with pytest.raises(WorkerLost, match="gave the request up"):
        await delivered.delivery.take()


async def test_what_did_not_reach_the_client_after_all_is_taken_back() -> None:
    delivered = Delivered()
    await delivered.token(100.5)
    await delivered.end()
    delivered.delivery.recall()
    delivered.delivery.end()
    said = delivered.said()
    assert (said.delivered_count, said.outcome, said.ttft_s) == (0, "cancelled", 0.0)
