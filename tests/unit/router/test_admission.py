"""Who is let in: one case per refusal, each naming what is wrong, its value and what would do."""

from dataclasses import replace
from typing import Any, Final

import pytest

from services.mesh.errors import (
    CreditExhausted,
    DuplicateRequest,
    InvalidRequest,
    InvalidSampling,
    NoWorker,
    OutboxFull,
    QueueFull,
    ResumeRefused,
    TokenworksError,
    UnknownModel,
    UnknownSloClass,
)
from services.mesh.events import CreditChanged
from services.router.core.admission import Situation, check
from services.router.core.request import Asked, PromptFacts, PromptKind, SamplingValues

CREDIT: Final = CreditChanged(
    tenant="acme",
    limit_nusd=2_000_000_000,
    spent_nusd=2_000_000_123,
    remaining_nusd=0,
    unlimited=False,
    exhausted=True,
    suspended=False,
    at_unix_ms=1,
)
QUIET: Final = Situation(
    draining=False,
    models={"llama-3.1-8b", "smollm2-135m-instruct"},
    workers=3,
    slo_classes={"interactive", "standard", "batch"},
    in_flight=5,
    max_in_flight=10,
    runs=False,
    answered=False,
    outbox_slots=4096.0,
    credit={},
    restraints=None,
    now_s=0.0,
)
ASKED: Final = Asked(
    request_id="r1",
    tenant="acme",
    model="llama-3.1-8b",
    slo_class="standard",
    workload="support",
    session_id="",
    prompt=PromptFacts(kind=PromptKind.TEXT, size=5),
    sampling=SamplingValues(max_tokens=16, temperature=1.0, top_p=1.0, stop=("\n",), n=1),
)


def asked(**changes: Any) -> Asked:
    return replace(ASKED, **changes)


def sampling(**changes: Any) -> Asked:
    return replace(ASKED, sampling=replace(ASKED.sampling, **changes))


def prompt(kind: PromptKind | None, size: int = 0, *roles: str) -> Asked:
    return replace(ASKED, prompt=PromptFacts(kind=kind, size=size, roles=roles))


REFUSED: Final = {
    "temperature": (sampling(temperature=2.5), InvalidSampling, "sampling.temperature = 2.5, must be from 0 to 2"),
    "not a number": (sampling(temperature=float("nan")), InvalidSampling, "sampling.temperature = nan"),
    "infinite": (sampling(presence_penalty=float("inf")), InvalidSampling, "sampling.presence_penalty = inf"),
    "top_p": (sampling(top_p=0.0), InvalidSampling, "sampling.top_p = 0, must be above 0 and at most 1"),
    "penalty": (sampling(frequency_penalty=-2.1), InvalidSampling, "frequency_penalty = -2.1, must be from -2 to 2"),
    "max_tokens": (sampling(max_tokens=0), InvalidSampling, "sampling.max_tokens = 0, must be at least 1"),
    "stops": (sampling(stop=("x",) * 17), InvalidSampling, "sampling.stop has 17 strings, must be at most 16"),
    "empty stop": (sampling(stop=("x", "")), InvalidSampling, "sampling.stop[1] = ''"),
    "n": (sampling(n=2), InvalidSampling, "sampling.n = 2, must be 0 or 1"),
    "no prompt": (prompt(None), InvalidRequest, "prompt is missing; set one of text, token_ids, chat"),
    "empty text": (prompt(PromptKind.TEXT), InvalidRequest, "prompt.text is empty"),
    "no ids": (prompt(PromptKind.TOKEN_IDS), InvalidRequest, "prompt.token_ids is empty"),
    "no messages": (prompt(PromptKind.CHAT), InvalidRequest, "prompt.chat has no messages"),
    "role": (prompt(PromptKind.CHAT, 9, "user", "robot"), InvalidRequest, "messages[1].role = 'robot'"),
    "id": (asked(request_id="x" * 129), InvalidRequest, "request_id has 129 characters, must be at most 128"),
    "workload": (asked(workload="x" * 200), InvalidRequest, "workload has 200 characters"),
    "nul": (asked(session_id="a\0b"), InvalidRequest, "has a NUL character"),
    "class": (asked(slo_class="now"), UnknownSloClass, "use one of: batch, interactive, standard"),
    "model": (asked(model="gpt"), UnknownModel, "served are: llama-3.1-8b, smollm2-135m-instruct"),
    "resume": (asked(resume_from=7), ResumeRefused, "resume_from = 7"),
}
IN_SITUATION: Final = {
    "draining": ({"draining": True}, NoWorker, "drains"),
    "nobody reported": ({"workers": 0, "models": ()}, NoWorker, "no worker has reported"),
    "runs": ({"runs": True}, DuplicateRequest, "request 'r1' runs already"),
    "answered": ({"answered": True}, DuplicateRequest, "was answered already"),
    "exhausted": ({"credit": {"acme": CREDIT}}, CreditExhausted, "(2.000000 of 2.000000 USD)"),
    "suspended": ({"credit": {"acme": replace(CREDIT, suspended=True)}}, CreditExhausted, "is suspended"),
    "full": ({"in_flight": 10}, QueueFull, "10 requests run at this router, its limit (router.max_in_flight)"),
    "outbox": ({"outbox_slots": 6.0}, OutboxFull, "events wait for the bus"),
}


def test_a_good_request_is_let_in() -> None:
    check(ASKED, QUIET)
    check(prompt(PromptKind.CHAT, 9, "system", "user"), QUIET)
    check(prompt(PromptKind.TOKEN_IDS, 1), QUIET)
    check(replace(ASKED, sampling=SamplingValues()), QUIET)


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_request_is_refused_by_name(name: str) -> None:
    bad, kind, says = REFUSED[name]
    with pytest.raises(kind) as caught:
        check(bad, QUIET)
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize("name", IN_SITUATION)
def test_a_good_request_is_refused_where_the_situation_says_so(name: str) -> None:
    changes, kind, says = IN_SITUATION[name]
    with pytest.raises(kind) as caught:
        check(ASKED, replace(QUIET, **changes))
    assert says in str(caught.value)
    capacity = kind in (NoWorker, QueueFull, OutboxFull)
    assert (caught.value.retry_after_s is not None) is capacity


@pytest.mark.parametrize(
    "credit",
    [replace(CREDIT, unlimited=True), replace(CREDIT, exhausted=False), replace(CREDIT, tenant="other")],
)
def test_credit_of_others_and_credit_that_is_left_lets_in(credit: CreditChanged) -> None:
    check(ASKED, replace(QUIET, credit={credit.tenant: credit}))


def test_the_callers_fault_is_told_before_the_meshs() -> None:
    full = replace(QUIET, in_flight=10, credit={"acme": CREDIT})
    with pytest.raises(InvalidSampling):
        check(sampling(top_p=2.0), full)
    with pytest.raises(CreditExhausted):
        check(ASKED, full)
    assert issubclass(CreditExhausted, TokenworksError)
