"""A request in plain values, as the cores see it. The edges (gRPC, HTTP) make one; nothing here knows the wire.

What is made for each request is not frozen, since a frozen one costs three times as much to make; nobody changes one.
"""

from dataclasses import dataclass
from enum import StrEnum

from services.mesh.confines import ANYWHERE, Confines
from services.mesh.prefix_chain import NO_CHAIN, Chain


class PromptKind(StrEnum):
    TEXT = "text"
    TOKEN_IDS = "token_ids"
    CHAT = "chat"


@dataclass(slots=True, kw_only=True)
class PromptFacts:
    """What of a prompt decides where it goes.

    Attributes:
        kind: None when no prompt was given.
        size: characters of a text or a chat, ids of token ids.
        roles: of a chat's messages, in order.
        chain: names the prompt's beginnings, as its worker does.
    """

    kind: PromptKind | None
    size: int
    roles: tuple[str, ...] = ()
    chain: Chain = NO_CHAIN


@dataclass(slots=True, kw_only=True)
class SamplingValues:
    """As sent; None where the caller left it to the engine. Ranges are checked by `admission`."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 0


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request for tokens; `request_id` and `slo_class` are filled.

    Attributes:
        key, team: of whoever asks, by name; empty where not known.
        conversation: of a request without a session: which earlier ones its prompt goes on from.
        features: what it needs of an engine beyond plain generation, see `mesh/features.py`.
        confines: where it may be computed.
    """

    request_id: str
    tenant: str
    model: str
    slo_class: str
    workload: str
    session_id: str
    prompt: PromptFacts
    sampling: SamplingValues
    resume_from: int = 0
    features: tuple[str, ...] = ()
    key: str = ""
    team: str = ""
    conversation: str = ""
    confines: Confines = ANYWHERE


@dataclass(frozen=True, slots=True)
class Promise:
    """What an SLO class promises, and what breaking it costs the house.

    Attributes:
        miss_usd: dollars per request whose TTFT or TPOT is late.
        priority: lower is sooner.
    """

    name: str
    ttft_s: float
    ttft_s_per_prompt_token: float
    tpot_s: float
    miss_usd: float
    priority: int

    def ttft_promise_s(self, prompt_tokens: int) -> float:
        return self.ttft_s + self.ttft_s_per_prompt_token * prompt_tokens
