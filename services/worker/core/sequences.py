"""One sequence as the scheduler sees it: how much to compute, how far it is, what it holds. Pure data."""

from dataclasses import dataclass, field
from enum import Enum, auto

from services.mesh.priorities import rank_of
from services.worker.core.kv_cache import Holding


class Phase(Enum):
    WAITING = auto()
    PREFILL = auto()
    DECODE = auto()
    ENDED = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class BatchedSequence:
    """A request's tokens, in numbers.

    Attributes:
        id: unique among those in the scheduler.
        priority: lower is sooner.
        prompt_tokens: >= 1; tokens to compute before the first new one: the prompt, and what is resumed.
        new_tokens: >= 1; tokens to make at most.
        block_hashes: chain hashes of its full blocks from the start, as far as they are known; whoever makes the
            tokens may append those of new blocks.
        token_ids: what is in these blocks, for whoever wants to know of blocks; whoever makes the tokens appends them.
        arrival: order of arrival, given by the scheduler.
        computed_tokens: tokens in the KV cache while it waits or is prefilled.
        cached_tokens: of the prompt, found in the cache when it was first taken up.
        made_tokens: new tokens so far; while it decodes, ask the scheduler.
        cancelled: it leaves with the step under way.
    """

    id: int
    prompt_tokens: int
    new_tokens: int
    priority: int = 0
    block_hashes: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    arrival: int = 0
    phase: Phase = Phase.WAITING
    computed_tokens: int = 0
    cached_tokens: int = 0
    made_tokens: int = 0
    preemptions: int = 0
    started: bool = False
    cancelled: bool = False
    holding: Holding = field(default_factory=Holding)
    # While it decodes: `made_base + step` tokens made, `length_base + step` tokens read at the scheduler's `step`.
    made_base: int = 0
    length_base: int = 0

    @property
    def rank(self) -> int:
        """Of its priority, see `mesh/priorities`."""
        return rank_of(self.priority)

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first."""
        return (self.priority, self.arrival)

    @property
    def prefill_goal(self) -> int:
        """Tokens to compute before it decodes; after a preemption with those it had made."""
        return self.prompt_tokens + self.made_tokens
