"""What of a stream is paid for: tokens beyond it are kept here until more is, or given to nobody.

In: a stream's outputs as the engine makes them, and what is held for it as that grows. Out: which outputs its reader
may have now; requests for more, half a slice ahead, so that a stream seldom waits. An engine cannot pause: what it
makes while its next slice is under way is held back, and follows when the slice has come. A stream for which there is
no more ends with its last funded token. An output that makes several tokens is passed on as a whole or not at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from services.mesh.events import Funding
from services.worker.engine import SequenceOutput, joined_lists

AT_ONCE: Final = -1  # of `ask_at`: the next output is looked at, whatever it holds
NEVER: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Funded:
    """What is held for a request.

    Attributes:
        prompt_tokens: the longest prompt that it pays for.
        completion_tokens: in all, those that were made elsewhere included.
        funding: to be passed on with what is reported of it.
    """

    prompt_tokens: int
    completion_tokens: int
    funding: tuple[Funding, ...]


class StreamFunds:
    """One stream's funds.

    Args:
        next_index: of the first token that is made here.
        most_tokens: that the answer can have, those before included.
        ask: asks for more: prompt tokens as counted, and tokens that exist or are kept here.

    Attributes:
        kept: outputs that are not paid for.
        final: no more will be paid for.
    """

    def __init__(self, funded: Funded, next_index: int, most_tokens: int, ask: Callable[[int, int], None]) -> None:
        self.funded = funded
        self.kept: list[SequenceOutput] = []
        self.final = False
        self._most_tokens = most_tokens
        self._ask = ask
        self._asked = False
        self._looked = False
        self._low_at = _half_way(next_index, funded.completion_tokens)

    @property
    def ask_at(self) -> int:
        """The index behind the next token with which the stream is to be looked at again."""
        paid = self.funded.completion_tokens
        if self.kept or not self._looked:
            return AT_ONCE
        if paid >= self._most_tokens:
            return NEVER
        if self.final:
            return paid
        return paid + 1 if self._asked else self._low_at

    def over(self, next_index: int) -> bool:
        """The stream has its last funded token, or waits for more in vain."""
        paid = self.funded.completion_tokens
        return self.final and (bool(self.kept) or (next_index >= paid and paid < self._most_tokens))

    def passes(self, output: SequenceOutput, next_index: int) -> bool:
        """Whether the reader may have the output now; else it is kept. Asks for more where it is time to."""
        self._looked = True
        paid, until = self.funded.completion_tokens, next_index + output.token_count
        paid_for = output.prompt_tokens <= self.funded.prompt_tokens and until <= paid
        passes = not self.kept and (not output.token_count or paid_for)
        if not passes:
            self.kept.append(output)
        low = until >= self._low_at and paid < self._most_tokens and output.finish is None
        if (low or not passes) and not self._asked and not self.final:
            self._asked = True
            self._ask(output.prompt_tokens, until)
        return passes

    def grow(self, funded: Funded, next_index: int, *, final: bool) -> None:
        """More is paid for; with `final`, no more than this will be."""
        self.funded, self.final, self._asked = funded, final, False
        self._low_at = _half_way(next_index, funded.completion_tokens)

    def ask_for_kept(self, next_index: int) -> None:
        """Asks once more where outputs are still kept: an engine that has ended makes no other occasion."""
        if self.kept and not self._asked and not self.final:
            self._asked = True
            made = sum(output.token_count for output in self.kept)
            self._ask(max(output.prompt_tokens for output in self.kept), next_index + made)

    def take_kept(self, next_index: int) -> SequenceOutput | None:
        """What was kept and is paid for, as one output that cost nothing more."""
        taken: list[SequenceOutput] = []
        for output in self.kept:
            until = next_index + output.token_count
            if output.prompt_tokens > self.funded.prompt_tokens or until > self.funded.completion_tokens:
                break
            taken.append(output)
            next_index = until
        del self.kept[: len(taken)]
        return joined(taken) if taken else None


def _half_way(next_index: int, paid: int) -> int:
    return paid - max(0, paid - next_index) // 2


def joined(outputs: list[SequenceOutput]) -> SequenceOutput:
    """Consecutive outputs as one, without their device time and energy, which were accounted for as they came."""
    last = outputs[-1]
    calls = ""
    for output in outputs:
        calls = joined_lists(calls, output.tool_calls_json)
    return replace(
        last,
        token_count=sum(output.token_count for output in outputs),
        text="".join(output.text for output in outputs),
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        logprobs=tuple(each for output in outputs for each in output.logprobs),
        tool_calls_json=calls,
        prompt_token_ids=outputs[0].prompt_token_ids,
        device_ns=0,
        energy_uj=0,
    )
