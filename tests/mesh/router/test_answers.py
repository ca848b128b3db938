"""One request id is answered once, whichever router it is sent to."""

from typing import Any

from services.mesh.events import RequestsAnswered
from services.mesh.subjects import ANSWERED
from tests.mesh.router.conftest import StartRouter
from tests.mesh.router.router_under_test import Router, eventually


def _knows(router: Router, request_id: str) -> bool:
    return router.running.dispatcher.records.was_answered(request_id)


async def test_what_another_router_has_answered_is_not_answered_anew(start_router: StartRouter) -> None:
    router = await start_router()
    await router.worker("w0")
    other = router.broker.bus("router", "router-1")
    await other.connect()
    other.publish(RequestsAnswered(router="router-1", request_ids=("theirs",), at_unix_ms=1))
    await eventually(lambda: _knows(router, "theirs"), "the other's answer is known")
    _, refused = await router.refusal(request_id="theirs")
    assert refused.reason == "DuplicateRequest"
    assert (await router.answer(2, request_id="mine")).tokens == 2
    await other.close()


async def test_a_router_tells_the_others_what_it_has_answered(start_router: StartRouter) -> None:
    router = await start_router()
    await router.worker("w0")
    heard: list[RequestsAnswered] = []
    other = router.broker.bus("router", "router-1")
    await other.connect()

    async def hear(delivered: Any) -> None:
        heard.append(delivered.event)

    router.life.spawn(other.watch([ANSWERED], hear), "another router")
    await router.answer(2, request_id="mine")
    await eventually(lambda: any("mine" in each.request_ids for each in heard), "it was told")
    assert {each.router for each in heard} == {"router-0"}
    await other.close()
