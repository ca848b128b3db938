"""What a simulated model says: the next token of a request from its prompt, its seed and the token's index. Pure.

In: prompt token ids, seed. Out: token ids with their text, and the length of the answer. The token at an index does not
depend on where generation began, so a stream that is resumed at index k goes on exactly as it would have; and the same
request says the same on every worker.

The answer is made of sentences of `SENTENCE_TOKENS` tokens. Their words come from a keyed hash of the block of
sentences, which pays for one hash per `_BLOCK_TOKENS` tokens. The natural length is drawn, from the same key, from a
log-normal distribution in whole sentences: a median of 160 tokens and a 99th percentile of about 1,000, like answers of
chat models in public traces.
"""

import hashlib
import struct
from array import array
from collections.abc import Sequence
from math import ceil, exp
from statistics import NormalDist
from typing import Final

from services.worker.core import words
from services.worker.core.tokenizer import encode

SENTENCE_TOKENS: Final = 8
_BLOCK_TOKENS: Final = 4 * SENTENCE_TOKENS
_MEDIAN_TOKENS: Final = 160
_SPREAD: Final = 0.8  # standard deviation of the logarithm
_MAX_TOKENS: Final = 4096
_UNPACK: Final = struct.Struct(f"<{_BLOCK_TOKENS}H").unpack

Token = tuple[int, str]  # id, text
_Choices = tuple[Token, ...]


def _token(text: str) -> Token:
    (token_id,) = encode(text)
    return token_id, text


def _inside(options: Sequence[str]) -> _Choices:
    return tuple(_token(f" {word}") for word in options)


def _opening(options: Sequence[str]) -> _Choices:
    return tuple(_token(f" {word.capitalize()}") for word in options)


# No "a": the word after it would have to agree.
_DETERMINER, _OPENING_DETERMINER = _inside(("the", "this")), _opening(("the", *words.DETERMINERS[2:]))
_ADJECTIVE, _NOUN, _ADVERB = _inside(words.ADJECTIVES), _inside(words.NOUNS), _inside(words.ADVERBS)
_TRANSITIVE, _INTRANSITIVE = _inside(words.TRANSITIVE_VERBS), _inside(words.INTRANSITIVE_VERBS)
_PREPOSITION, _STOP = _inside(words.PREPOSITIONS), (_token("."),)

_SENTENCES: Final[tuple[tuple[_Choices, ...], ...]] = (
    (_OPENING_DETERMINER, _ADJECTIVE, _NOUN, _TRANSITIVE, _DETERMINER, _ADJECTIVE, _NOUN, _STOP),
    (_opening(words.ADVERBS), _DETERMINER, _NOUN, _TRANSITIVE, _DETERMINER, _ADJECTIVE, _NOUN, _STOP),
    (_OPENING_DETERMINER, _NOUN, _INTRANSITIVE, _PREPOSITION, _DETERMINER, _ADJECTIVE, _NOUN, _STOP),
    (_OPENING_DETERMINER, _ADJECTIVE, _NOUN, _INTRANSITIVE, _PREPOSITION, _DETERMINER, _NOUN, _STOP),
    (_OPENING_DETERMINER, _ADJECTIVE, _NOUN, _TRANSITIVE, _DETERMINER, _NOUN, _ADVERB, _STOP),
)
assert all(len(sentence) == SENTENCE_TOKENS for sentence in _SENTENCES)


def answer_key(model: str, prompt_ids: Sequence[int], seed: int | None) -> bytes:
    """What an answer follows from. No seed counts as seed 0, so that what is resumed elsewhere agrees.

    Args:
        prompt_ids: each < 2^32.
    """
    made = hashlib.blake2b(array("I", prompt_ids).tobytes(), digest_size=16, person=b"tokenworks")
    made.update(f"{model}\0{seed or 0}".encode())
    return made.digest()


def natural_tokens(key: bytes) -> int:
    """Tokens after which the answer ends by itself: a multiple of `SENTENCE_TOKENS`, at most 4,096."""
    draw = int.from_bytes(hashlib.blake2b(b"length", key=key, digest_size=8).digest()) / (1 << 64)
    logarithm = NormalDist(0.0, _SPREAD).inv_cdf(min(1 - 1e-9, max(1e-9, draw)))
    sentences = ceil(_MEDIAN_TOKENS * exp(logarithm) / SENTENCE_TOKENS)
    return min(_MAX_TOKENS, sentences * SENTENCE_TOKENS)


class Answer:
    """One request's tokens in order, from any index on."""

    __slots__ = ("_block", "_key", "_position", "_tokens")

    def __init__(self, key: bytes, start: int = 0) -> None:
        """`start`: index of the first token that `next_token` gives."""
        self._key = key
        self._block, self._position = divmod(start, _BLOCK_TOKENS)
        self._tokens = self._make()

    def next_token(self) -> Token:
        """Id and text of the next token."""
        if self._position == _BLOCK_TOKENS:
            self._block += 1
            self._position = 0
            self._tokens = self._make()
        token = self._tokens[self._position]
        self._position += 1
        return token

    def _make(self) -> list[Token]:
        digest = hashlib.blake2b(self._block.to_bytes(8, "little"), key=self._key, digest_size=64).digest()
        numbers = _UNPACK(digest)
        tokens = []
        for start in range(0, _BLOCK_TOKENS, SENTENCE_TOKENS):
            # The opening word has few alternatives, which leaves bits of its number for the form of the sentence.
            form, opening = divmod(numbers[start], 1 << 12)
            sentence = _SENTENCES[form % len(_SENTENCES)]
            tokens.append(sentence[0][opening % len(sentence[0])])
            for choices, number in zip(sentence[1:], numbers[start + 1 : start + SENTENCE_TOKENS], strict=True):
                tokens.append(choices[number % len(choices)])
        if self._block == 0:
            tokens[0] = _token(tokens[0][1].removeprefix(" "))
        return tokens
