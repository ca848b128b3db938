"""What goes on after a break: ids of this tokenizer as they are, text of another's, and a named refusal of the rest."""

from collections.abc import Sequence
from typing import Any

import pytest

from services.mesh.errors import PromptTooLong, ResumeRefused
from services.worker.core import tokenizer
from services.worker.core.simulation import TOKENIZER
from services.worker.core.tokenizer_print import PROBE, fingerprint
from services.worker.engine import ChatMessage, EngineRequest, Prompt, Sampling
from services.worker.engines.prompts import LoadedModel, PromptEncoder


class Words:
    """A tokenizer of words: an id for each, in the order in which it meets them. It loses double spaces."""

    def __init__(self) -> None:
        self.words: list[str] = []

    async def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return tuple(self.words.index(word) for word in text.split())

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return " ".join(self.words[each] for each in token_ids)

    async def encode_chat(self, chat: Sequence[ChatMessage]) -> tuple[int, ...]:
        return await self.tokenize(" ".join(message.content for message in chat), special=True)


class Deaf(Words):
    async def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        raise KeyError(text)


async def encoder(context_tokens: int = 100, words: Words | None = None) -> PromptEncoder:
    made = PromptEncoder(words or Words(), "m", LoadedModel(0, context_tokens))
    await made.find_fingerprint()
    return made


def resumed(**changes: Any) -> EngineRequest:
    base: dict[str, Any] = {
        "prompt": Prompt(text="one two three"),
        "sampling": Sampling(max_tokens=10),
        "resume_from": 3,
        "resumed_text": "four five",
        "resumed_token_ids": (7, 8, 9),
        "resumed_tokenizer": "another",
    }
    return EngineRequest(**{"sequence": 1, "request_id": "r", "model": "m", **base, **changes})


async def test_ids_of_another_tokenizer_are_not_taken_and_their_text_is() -> None:
    encoded = await (await encoder()).encode(resumed())
    assert len(encoded.token_ids) == 3 + 2
    assert (encoded.prompt_tokens, encoded.max_tokens, encoded.held_text) == (3, 10 - 3, "")


async def test_ids_of_this_tokenizer_or_of_no_known_one_are_taken_as_they_are() -> None:
    made = await encoder()
    for told in (made.fingerprint, ""):
        encoded = await made.encode(resumed(resumed_tokenizer=told))
        assert encoded.token_ids[3:] == (7, 8, 9)
        assert encoded.max_tokens == 10 - 3


async def test_a_foreign_text_that_does_not_come_back_unchanged_is_refused_by_name() -> None:
    with pytest.raises(ResumeRefused, match="cannot go on at token 3: another tokenizer made what was delivered"):
        await (await encoder()).encode(resumed(resumed_text="four  five"))


async def test_a_foreign_text_longer_in_this_tokenizer_leaves_less_room() -> None:
    encoded = await (await encoder(context_tokens=9)).encode(resumed(resume_from=1, resumed_text="a b c d"))
    assert (len(encoded.token_ids), encoded.max_tokens) == (7, 2)
    with pytest.raises(PromptTooLong):
        await (await encoder(context_tokens=7)).encode(resumed(resume_from=1, resumed_text="a b c d"))


async def test_a_tokenizer_that_cannot_take_the_probe_has_no_fingerprint() -> None:
    assert (await encoder(words=Deaf())).fingerprint == ""


async def test_tokenizers_have_the_same_fingerprint_where_their_ids_mean_the_same() -> None:
    first, second, used = await encoder(), await encoder(), Words()
    await used.tokenize("other words first", special=False)
    assert first.fingerprint == second.fingerprint != (await encoder(words=used)).fingerprint
    assert fingerprint(tokenizer.encode(PROBE)) == TOKENIZER != first.fingerprint
    assert tokenizer.decode(tokenizer.encode(PROBE)) == PROBE
    assert fingerprint(()) == ""
