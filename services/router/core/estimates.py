"""What a router has to guess before a worker knows: prompt tokens of a text, and how many tokens an answer will have.

In: what finished requests really had. Out: expectations for the next one. An answer's length is expected as those of
its tenant's workload were, whose distribution is learnt (`mesh/answer_lengths`), and where that is new, as all of the
model's. All is online with forgetting, and every map is bounded, least recently used first out.
"""

from collections import OrderedDict
from dataclasses import dataclass
from math import ceil
from typing import Final, TypeVar

from services.mesh.answer_lengths import AnswerLengths, Lengths
from services.router.core.request import Asked, PromptFacts, PromptKind

_FIRST_TOKENS_PER_CHARACTER: Final = 0.25  # English under the usual vocabularies
_TOKENS_PER_MESSAGE: Final = 4  # role and separators of one chat message
_LONGEST_TOKEN_CHARACTERS: Final = 128  # of the vocabularies in use; a run of blanks
_FIRST_LENGTHS: Final = Lengths((25, 60, 120, 250, 545), (1, 1, 1, 1, 1), 0.0)  # before anything is known
_FIRST_COMPLETION_TOKENS: Final = 200.0
_WIDER_ANSWERS: Final = 5.0  # how many answers a wider kind counts for at first, beside a narrow one
_MEMORY_REQUESTS: Final = 50.0  # a mean forgets what is older than about this many requests
_KEYS: Final = 4096

_Key = TypeVar("_Key")


@dataclass(slots=True)
class _Mean:
    value: float
    count: float = 0.0

    def add(self, sample: float) -> None:
        self.count = min(self.count + 1.0, _MEMORY_REQUESTS)
        self.value += (sample - self.value) / self.count


@dataclass(slots=True)
class _Kind:
    """Answers of a model, or of one workload of it; `lengths` as they were a few answers ago at most."""

    learnt: AnswerLengths
    lengths: Lengths


class Estimates:
    """Expected prompt and completion tokens, learnt from what finished."""

    def __init__(self) -> None:
        self._tokens_per_character: OrderedDict[str, _Mean] = OrderedDict()
        self._completions: OrderedDict[tuple[str, ...], _Mean] = OrderedDict()
        self._kinds: OrderedDict[tuple[str, ...], _Kind] = OrderedDict()

    def prompt_tokens(self, model: str, prompt: PromptFacts) -> int:
        """The tokens a prompt is expected to have, >= 1; exact for token ids."""
        if prompt.kind is PromptKind.TOKEN_IDS:
            return max(1, prompt.size)
        ratio = self._tokens_per_character.get(model)
        per_character = ratio.value if ratio else _FIRST_TOKENS_PER_CHARACTER
        return max(1, round(prompt.size * per_character) + _TOKENS_PER_MESSAGE * len(prompt.roles))

    @staticmethod
    def fewest_prompt_tokens(prompt: PromptFacts) -> int:
        """Tokens that a prompt has under any vocabulary: what is refused for this is refused rightly."""
        if prompt.kind is PromptKind.TOKEN_IDS:
            return prompt.size
        return ceil(prompt.size / _LONGEST_TOKEN_CHARACTERS)

    def completion_tokens(self, asked: Asked, made: int = 0) -> int:
        """The tokens an answer is expected to have beyond those that are `made`, 1 to what max_tokens leaves.

        An answer that goes on is longer than the usual one, so what is left is not the mean less what is made.
        """
        most = asked.sampling.max_tokens
        if asked.sampling.ignore_eos and most is not None:
            return max(1, most - made)
        if made:
            left = self.lengths(asked).mean_left(made)
            return max(1, round(left if most is None else min(left, most - made)))
        # A mean that moves slowly: when a flood begins, the answers that have ended are the short ones.
        expected = _FIRST_COMPLETION_TOKENS
        for key in ((asked.model,), (asked.tenant, asked.workload, asked.model)):
            if (mean := self._completions.get(key)) is not None:
                expected = (mean.value * mean.count + expected * _WIDER_ANSWERS) / (mean.count + _WIDER_ANSWERS)
        tokens = max(1, round(expected))
        return tokens if most is None else min(tokens, most)

    def lengths(self, asked: Asked) -> Lengths:
        """How long answers of its tenant's workload are, or where nothing is known of that, of its model."""
        kinds = self._kinds
        kind = kinds.get((asked.tenant, asked.workload, asked.model)) or kinds.get((asked.model,))
        return kind.lengths if kind is not None else _FIRST_LENGTHS

    def mean_completion_tokens(self, model: str) -> float:
        """The mean answer of the model's requests, >= 1."""
        mean = self._completions.get((model,))
        return max(1.0, mean.value) if mean else _FIRST_COMPLETION_TOKENS

    def learn(self, asked: Asked, prompt_tokens: int, completion_tokens: int) -> None:
        """Folds in a request that ended by itself (stop or length)."""
        if asked.prompt.kind is not PromptKind.TOKEN_IDS and asked.prompt.size >= 16 and prompt_tokens > 0:
            bare = max(1, prompt_tokens - _TOKENS_PER_MESSAGE * len(asked.prompt.roles))
            _recent(self._tokens_per_character, asked.model, _FIRST_TOKENS_PER_CHARACTER).add(bare / asked.prompt.size)
        wider = _FIRST_LENGTHS
        for key in ((asked.model,), (asked.tenant, asked.workload, asked.model)):
            _recent(self._completions, key, float(completion_tokens)).add(completion_tokens)
            wider = self._learn(key, completion_tokens, wider)

    def _learn(self, key: tuple[str, ...], completion_tokens: int, wider: Lengths) -> Lengths:
        """Folds an answer in; how long the kind's are."""
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _KEYS:
                self._kinds.popitem(last=False)
            kind = self._kinds[key] = _Kind(AnswerLengths(), wider)
        self._kinds.move_to_end(key)
        if kind.learnt.add(completion_tokens):
            kind.lengths = kind.learnt.lengths(wider, _WIDER_ANSWERS)
        return kind.lengths


def _recent(means: OrderedDict[_Key, _Mean], key: _Key, first: float) -> _Mean:
    mean = means.get(key)
    if mean is None:
        if len(means) >= _KEYS:
            means.popitem(last=False)
        mean = means[key] = _Mean(first)
    means.move_to_end(key)
    return mean
