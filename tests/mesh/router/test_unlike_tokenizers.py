"""A model served with unlike tokenizers under one name: token ids stay with the tokenizer that made them."""

import grpc
import pytest

from services.mesh.errors import EngineFailed, ResumeRefused
from tests.mesh.router.fake_worker import Opened, breaking, text_of
from tests.mesh.router.router_under_test import Router

pytestmark = pytest.mark.mesh


def fail(opened: Opened) -> None:
    opened.send(opened.error(EngineFailed("out of memory")))


def refuse(opened: Opened) -> None:
    opened.send(opened.error(ResumeRefused("its text does not come back unchanged")))


async def test_the_next_worker_is_told_whose_ids_they_are(router: Router) -> None:
    await router.worker("w0", breaking(3, fail), rate_nusd_per_hour=1, tokenizer="a")
    second = await router.worker("w1", tokenizer="b")
    assert (await router.answer(8)).tokens == 8
    order = second.opened[0].order
    assert (list(order.resumed_token_ids.ids), order.resumed_tokenizer) == ([0, 1, 2], "a")


async def test_ids_of_two_tokenizers_are_of_none(router: Router) -> None:
    await router.worker("w0", breaking(3, fail), rate_nusd_per_hour=1, tokenizer="a")
    await router.worker("w1", breaking(5, fail), rate_nusd_per_hour=2, tokenizer="b")
    third = await router.worker("w2", tokenizer="a")
    assert (await router.answer(8)).tokens == 8
    order = third.opened[0].order
    assert (list(order.resumed_token_ids.ids), order.resumed_tokenizer) == ([], "a,b")
    assert order.resumed_text == text_of(0, 5)


async def test_what_one_tokenizer_cannot_go_on_with_another_may(router: Router) -> None:
    await router.worker("w0", breaking(3, fail), rate_nusd_per_hour=1, tokenizer="a")
    unlike = await router.worker("w1", refuse, rate_nusd_per_hour=2, tokenizer="b")
    alike = await router.worker("w2", tokenizer="a")
    assert (await router.answer(8)).tokens == 8
    assert (len(unlike.opened), len(alike.opened)) == (1, 1)


async def test_where_nobody_can_go_on_the_client_is_told_why_and_where(router: Router) -> None:
    await router.worker("w0", breaking(3, fail), rate_nusd_per_hour=1, tokenizer="a")
    others = [await router.worker(f"w{index}", refuse, tokenizer="b") for index in (1, 2)]
    code, error = await router.refusal()
    assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ResumeRefused")
    assert str(error).startswith("after 3 tokens the answer could not be continued: ")
    assert sum(len(each.opened) for each in others) == 1
