import asyncio

import pytest

from services.mesh.errors import UnknownModel
from services.mesh.events import RoutingPlan
from services.optimizer import board as core
from services.optimizer.board import PlanBoard
from tests.unit.optimizer.facts import MODEL


def plan(version: int, model: str = MODEL) -> RoutingPlan:
    return RoutingPlan(model=model, version=version, made_unix_ms=0)


def test_unknown_model_names_those_that_have_plans() -> None:
    board = PlanBoard()
    with pytest.raises(UnknownModel, match="none"):
        board.plan(MODEL)
    board.post([plan(1)])
    assert board.plan(MODEL).version == 1
    with pytest.raises(UnknownModel, match=MODEL):
        board.plan("other")


async def test_watcher_that_lags_skips_to_the_latest() -> None:
    board = PlanBoard()
    board.post([plan(1)])
    watch = board.watch(MODEL)
    assert (await anext(watch)).version == 1
    board.post([plan(2)])
    board.post([plan(3), plan(9, "other")])
    assert (await anext(watch)).version == 3
    await watch.aclose()


async def test_watcher_sleeps_through_plans_of_other_models_and_ends_with_the_service() -> None:
    board = PlanBoard()
    board.post([plan(1)])
    seen: list[int] = []

    async def follow() -> None:
        seen.extend([each.version async for each in board.watch(MODEL)])

    async with asyncio.timeout(10):
        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            await asyncio.sleep(0)
            board.post([plan(7, "other")])
            await asyncio.sleep(0)
            board.post([plan(2)])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await board.stop()
    assert seen == [1, 2]


async def test_the_plans_posted_last_are_kept_and_who_watches_another_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_MOST_PLANS", 2)
    board = PlanBoard()
    board.post([plan(1)])
    watch = board.watch(MODEL)
    assert (await anext(watch)).version == 1
    board.post([plan(1, "a"), plan(1, "b")])
    assert board.models == ["a", "b"]
    board.post([plan(2)])
    assert (await anext(watch)).version == 2
    assert board.models == ["b", MODEL]
    await watch.aclose()
