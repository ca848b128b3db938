"""Whether a request is let in: everything that can be said before a worker is chosen. Refusing leaves no trace: nothing
is held, nothing counted, no event is published.

In: a request in plain values and what the router knows. Out: nothing, or the error that the caller gets.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Final

from services.mesh.errors import (
    CreditExhausted,
    DuplicateRequest,
    InvalidRequest,
    InvalidSampling,
    NoWorker,
    OutboxFull,
    QueueFull,
    ResumeRefused,
    UnknownModel,
    UnknownSloClass,
)
from services.mesh.events import CreditChanged
from services.router.core.request import Asked, PromptKind, SamplingValues
from services.router.core.restraints import Restraints

_ROLES: Final = ("system", "user", "assistant", "tool")
_MOST_STOPS: Final = 16
_LONGEST: Final = {"request_id": 128, "workload": 128, "session_id": 256}  # characters


@dataclass(slots=True, kw_only=True)  # not frozen: every request has one made
class Situation:
    """What the router knows when a request arrives.

    Attributes:
        models: those served now or before.
        workers: how many are known.
        in_flight: requests that run now, at most `max_in_flight`.
        runs, answered: a request with this id runs, or ended after its client had got tokens.
        outbox_slots: events that can still be published while the bus is away; each request needs one in reserve.
        credit: the last word on each tenant that has a budget.
        restraints: of what runs away; None for a request that goes on.
    """

    draining: bool
    models: Collection[str]
    workers: int
    slo_classes: Collection[str]
    in_flight: int
    max_in_flight: int
    runs: bool
    answered: bool
    outbox_slots: float
    credit: Mapping[str, CreditChanged]
    restraints: Restraints | None
    now_s: float


def check(asked: Asked, situation: Situation) -> None:
    """Lets the request in, or raises the first error found: the caller's faults first, then credit, then capacity.

    Raises:
        InvalidRequest, InvalidSampling, UnknownModel, UnknownSloClass, ResumeRefused, DuplicateRequest: the request.
        CreditExhausted: the tenant.
        RunawayStopped: the tenant, workload or session.
        QueueFull, OutboxFull, NoWorker: the mesh, for now.
    """
    if situation.draining:
        raise NoWorker("this router drains and takes no new requests; send the request to another one", retry_after_s=1)
    _check_prompt(asked)
    _check_names(asked)
    check_sampling(asked.sampling)
    if asked.slo_class not in situation.slo_classes:
        raise UnknownSloClass(f"slo_class {asked.slo_class!r} is not known; use one of: {_list(situation.slo_classes)}")
    if asked.model not in situation.models:
        if situation.workers == 0:
            raise NoWorker("no worker has reported to this router yet; try again")
        raise UnknownModel(f"model {asked.model!r} is not served here; served are: {_list(situation.models)}")
    if asked.resume_from > 0:
        raise ResumeRefused(
            f"resume_from = {asked.resume_from}, but this router does not hold the first tokens of request"
            f" {asked.request_id!r}; send it anew with another request_id"
        )
    if situation.runs:
        raise DuplicateRequest(f"request {asked.request_id!r} runs already; use another request_id, or wait for it")
    if situation.answered:
        raise DuplicateRequest(f"request {asked.request_id!r} was answered already; use another request_id")
    _check_credit(asked.tenant, situation.credit)
    if situation.in_flight >= situation.max_in_flight:
        raise QueueFull(
            f"{situation.in_flight} requests run at this router, its limit (router.max_in_flight); try again"
        )
    if situation.outbox_slots <= situation.in_flight + 1:
        raise OutboxFull("events wait for the bus and there is no room for another request's; try again")
    if situation.restraints:
        situation.restraints.check(asked, situation.now_s)


def check_sampling(sampling: SamplingValues) -> None:
    """Raises InvalidSampling: names the field, its value and its range."""
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise InvalidSampling(
            f"sampling.max_tokens = {sampling.max_tokens}, must be at least 1; leave it unset instead"
        )
    _in_range("temperature", sampling.temperature, 0.0, 2.0)
    _in_range("top_p", sampling.top_p, 0.0, 1.0, open_below=True)
    _in_range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _in_range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    if len(sampling.stop) > _MOST_STOPS:
        raise InvalidSampling(f"sampling.stop has {len(sampling.stop)} strings, must be at most {_MOST_STOPS}")
    if "" in sampling.stop:
        raise InvalidSampling(f"sampling.stop[{sampling.stop.index('')}] = '', must not be empty")
    if sampling.n > 1:
        raise InvalidSampling(f"sampling.n = {sampling.n}, must be 0 or 1; send {sampling.n} requests instead")


def _in_range(name: str, value: float | None, low: float, high: float, *, open_below: bool = False) -> None:
    if value is None:
        return
    if not isfinite(value) or value < low or value > high or (open_below and value == low):
        bounds = f"{'above' if open_below else 'from'} {low:g} {'and at most' if open_below else 'to'} {high:g}"
        raise InvalidSampling(f"sampling.{name} = {value:g}, must be {bounds}")


def _check_prompt(asked: Asked) -> None:
    prompt = asked.prompt
    if prompt.kind is None:
        raise InvalidRequest("prompt is missing; set one of text, token_ids, chat")
    if prompt.kind is PromptKind.CHAT:
        if not prompt.roles:
            raise InvalidRequest("prompt.chat has no messages; send at least one")
        for index, role in enumerate(prompt.roles):
            if role not in _ROLES:
                raise InvalidRequest(f"prompt.chat.messages[{index}].role = {role!r}, must be one of: {_list(_ROLES)}")
    elif prompt.size == 0:
        raise InvalidRequest(f"prompt.{prompt.kind} is empty; send at least one token")


def _check_names(asked: Asked) -> None:
    for name, most in _LONGEST.items():
        value = getattr(asked, name)
        if len(value) > most:
            raise InvalidRequest(f"{name} has {len(value)} characters, must be at most {most}")
        if "\0" in value:  # PostgreSQL, which may keep the books, knows no such text
            raise InvalidRequest(f"{name} = {value!r} has a NUL character; leave it out")


def _check_credit(tenant: str, credit: Mapping[str, CreditChanged]) -> None:
    last = credit.get(tenant)
    if last is None or last.unlimited:
        return
    if last.suspended:
        raise CreditExhausted(f"tenant {tenant!r} is suspended; its operator can lift that")
    if last.exhausted:
        raise CreditExhausted(
            f"tenant {tenant!r} has spent its budget ({last.spent_nusd / 1e9:.6f} of {last.limit_nusd / 1e9:.6f} USD);"
            " add credit"
        )


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"
