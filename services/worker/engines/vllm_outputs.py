"""What vLLM says, read: the tokens of a request, and which prompts a step worked on.

In: vLLM's outputs and the counts of its scheduler, as objects with the attributes below; vLLM itself is not imported.
Out: `Arrival`s.

vLLM tells the prompt tokens of a step, but not whose they were, and a request's cached tokens with its first token
only. Its scheduler goes on with the prompt that it has begun, then takes the next one in order of priority; so of a
step's prompt tokens, those go to the requests that came to their first token which these still lacked, and the rest to
the first of the others in that order. At most one prompt is begun and not done at a time, so this is right but for
prompts of which much was cached: their parts shift, the sum does not.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from services.mesh.errors import EngineFailed
from services.worker.core.measured_steps import Arrival
from services.worker.core.stop_strings import StopMatcher
from services.worker.engine import FinishReason, TokenLogprob
from services.worker.engines.request_line import Job

_FINISH: Final = {
    "stop": FinishReason.STOP,
    "repetition": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "abort": FinishReason.CANCELLED,
}


class Logprob(Protocol):
    logprob: float
    decoded_token: str | None


class Delta(Protocol):
    """What is new of an answer: `vllm.outputs.CompletionOutput`."""

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Logprob]] | None
    finish_reason: str | None


class Output(Protocol):
    """`vllm.outputs.RequestOutput` of a request for one answer."""

    outputs: Sequence[Delta]
    finished: bool
    num_cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What vLLM's scheduler says after a step.

    Attributes:
        prompt_tokens: computed in it; 0 where this is not told.
        waiting: requests that vLLM has and that did not run in it.
        kv_usage: 0 to 1.
    """

    prompt_tokens: int
    waiting: int
    kv_usage: float


class DeltaReader:
    """Turns the outputs of one request into arrivals.

    Attributes:
        begun: a token was made.
        computed: tokens of its prompt (and of what is resumed) that steps before its first token worked on.
        stopped: a stop string was complete: the answer has ended, though vLLM goes on.
    """

    def __init__(self, job: Job, special_ids: Collection[int] = (), *, tells_prompt: bool = False) -> None:
        """
        Args:
            special_ids: of tokens that are not shown.
            tells_prompt: the first arrival has the ids of the prompt.
        """
        request, encoded = job.request, job.encoded
        self.sequence: Final = request.sequence
        self.order: Final = (job.priority, job.number)
        self.begun = False
        self.computed = 0
        self._prompt = len(encoded.token_ids)
        self._stop = StopMatcher(request.sampling.stop)
        self._shown = self._stop.feed(encoded.held_text)  # may be shown, and goes out with the next arrival
        self._alternatives = request.sampling.logprobs
        self._special_ids = special_ids
        self._prompt_ids = encoded.token_ids[: encoded.prompt_tokens] if tells_prompt else ()

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    @property
    def lacking(self) -> int:
        """Tokens of the prompt that are still to be computed, if none is cached."""
        return 0 if self.begun else self._prompt - self.computed

    def read(self, output: Output, at_s: float) -> Arrival:
        """The arrival that an output is; `stopped` and its `finish` say whether another one may be read."""
        (delta,) = output.outputs
        text, self._shown = self._shown + self._stop.feed(delta.text), ""
        finish: FinishReason | None = None
        if self.stopped:
            finish = FinishReason.STOP
        elif output.finished:
            finish = _FINISH.get(delta.finish_reason or "", FinishReason.ERROR)
            text += self._stop.flush()
        told = f"vLLM ended the request with {delta.finish_reason!r}"
        prefill = cached = 0
        if delta.token_ids and not self.begun:
            cached = output.num_cached_tokens or 0
            # The token itself comes from computing at least one.
            prefill = max(1, self._prompt - cached - self.computed)
            self.begun = True
        return Arrival(
            sequence=self.sequence,
            at_s=at_s,
            token_count=len(delta.token_ids),
            token_ids=tuple(delta.token_ids),
            text=text,
            prefill_tokens=prefill,
            cached_tokens=cached,
            finish=finish,
            error=(EngineFailed.__name__, told) if finish is FinishReason.ERROR else None,
            logprobs=() if self._alternatives is None else self._logprobs(delta, self._alternatives),
            prompt_token_ids=self._prompt_ids_once(),
        )

    def worked_on(self, tokens: int, at_s: float) -> Arrival:
        """The arrival of a step that computed `tokens` >= 1 of the prompt, and no token yet."""
        self.computed += tokens
        return Arrival(
            sequence=self.sequence,
            at_s=at_s,
            prefill_tokens=tokens,
            prompt_token_ids=self._prompt_ids_once(),
        )

    def cancelled(self, at_s: float) -> Arrival:
        """The last arrival of a request that was ended from here; text that was held back is let out."""
        text = self._shown + self._stop.flush()
        return Arrival(sequence=self.sequence, at_s=at_s, text=text, finish=FinishReason.CANCELLED)

    def failed(self, at_s: float, error: tuple[str, str]) -> Arrival:
        return Arrival(sequence=self.sequence, at_s=at_s, finish=FinishReason.ERROR, error=error)

    def _prompt_ids_once(self) -> tuple[int, ...]:
        told, self._prompt_ids = self._prompt_ids, ()
        return told

    def _logprobs(self, delta: Delta, alternatives: int) -> tuple[TokenLogprob, ...]:
        """One for each token; vLLM gives the chosen one beside the likeliest, where it is none of them."""
        told = []
        for token_id, places in zip(delta.token_ids, delta.logprobs or (), strict=False):
            named = {each: self._text(each, place) for each, place in places.items()}
            likeliest = sorted(places, key=lambda each: -places[each].logprob)[:alternatives]
            top = tuple((named[each], places[each].logprob) for each in likeliest)
            told.append(TokenLogprob(named[token_id], places[token_id].logprob, top))
        return tuple(told)

    def _text(self, token_id: int, place: Logprob) -> str:
        return "" if token_id in self._special_ids else place.decoded_token or ""


def prompts_worked_on(
    readers: Iterable[DeltaReader], arrivals: Sequence[Arrival], prompt_tokens: int, at_s: float
) -> list[Arrival]:
    """Arrivals of the requests whose prompts a step worked on without coming to their end.

    Args:
        readers: of all requests that vLLM has.
        arrivals: what those got that made a token in this step.
        prompt_tokens: that the step computed, of all requests.
    """
    left = prompt_tokens - sum(arrival.prefill_tokens for arrival in arrivals)
    if left <= 0:
        return []
    found = []
    for reader in sorted(readers, key=lambda each: (each.computed == 0, each.order)):
        tokens = min(left, reader.lacking - 1)  # one more, and it would have made a token
        if tokens > 0:
            found.append(reader.worked_on(tokens, at_s))
            left -= tokens
    return found
