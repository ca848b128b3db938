"""What a router has to guess before a worker knows: prompt tokens of a text, and how many tokens an answer will have.

In: what finished requests really had. Out: expectations for the next one. All means are online with forgetting, and
every map is bounded, least recently used first out.
"""

from collections import OrderedDict
from dataclasses import dataclass
from math import ceil
from typing import Final, TypeVar

from services.router.core.request import Asked, PromptFacts, PromptKind

_FIRST_TOKENS_PER_CHARACTER: Final = 0.25  # English under the usual vocabularies
_TOKENS_PER_MESSAGE: Final = 4  # role and separators of one chat message
_LONGEST_TOKEN_CHARACTERS: Final = 128  # of the vocabularies in use; a run of blanks
_FIRST_COMPLETION_TOKENS: Final = 200.0
_PRIOR_REQUESTS: Final = 5.0  # how many requests the wider mean counts for beside a narrow one
_MEMORY_REQUESTS: Final = 50.0  # a mean forgets what is older than about this many requests
_KEYS: Final = 10_000

_Key = TypeVar("_Key")


@dataclass(slots=True)
class _Mean:
    value: float
    count: float = 0.0

    def add(self, sample: float) -> None:
        self.count = min(self.count + 1.0, _MEMORY_REQUESTS)
        self.value += (sample - self.value) / self.count


class Estimates:
    """Expected prompt and completion tokens, learnt from what finished."""

    def __init__(self) -> None:
        self._tokens_per_character: OrderedDict[str, _Mean] = OrderedDict()
        self._completions: OrderedDict[tuple[str, ...], _Mean] = OrderedDict()

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

    def completion_tokens(self, asked: Asked) -> int:
        """The tokens an answer is expected to have, 1 to max_tokens."""
        most = asked.sampling.max_tokens
        if asked.sampling.ignore_eos and most is not None:
            return most
        expected = _FIRST_COMPLETION_TOKENS
        for key in ((asked.model,), (asked.tenant, asked.workload, asked.model)):
            if (mean := self._completions.get(key)) is not None:
                expected = (mean.value * mean.count + expected * _PRIOR_REQUESTS) / (mean.count + _PRIOR_REQUESTS)
        tokens = max(1, round(expected))
        return tokens if most is None else min(tokens, most)

    def mean_completion_tokens(self, model: str) -> float:
        """The mean answer of the model's requests, >= 1."""
        mean = self._completions.get((model,))
        return max(1.0, mean.value) if mean else _FIRST_COMPLETION_TOKENS

    def learn(self, asked: Asked, prompt_tokens: int, completion_tokens: int) -> None:
        """Folds in a request that ended by itself (stop or length)."""
        if asked.prompt.kind is not PromptKind.TOKEN_IDS and asked.prompt.size >= 16 and prompt_tokens > 0:
            bare = max(1, prompt_tokens - _TOKENS_PER_MESSAGE * len(asked.prompt.roles))
            _recent(self._tokens_per_character, asked.model, _FIRST_TOKENS_PER_CHARACTER).add(bare / asked.prompt.size)
        for key in ((asked.model,), (asked.tenant, asked.workload, asked.model)):
            _recent(self._completions, key, float(completion_tokens)).add(completion_tokens)


def _recent(means: OrderedDict[_Key, _Mean], key: _Key, first: float) -> _Mean:
    mean = means.get(key)
    if mean is None:
        if len(means) >= _KEYS:
            means.popitem(last=False)
        mean = means[key] = _Mean(first)
    means.move_to_end(key)
    return mean
