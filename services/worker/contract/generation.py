"""Cases: what is made of a prompt, how much of it, and that it can be made again."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from services.worker.contract.running import Capability, Running
from services.worker.engine import ChatMessage, FinishReason, Prompt

PROMPT = "the and of it was in there"
CHAT = Prompt(chat=(ChatMessage("system", "be brief"), ChatMessage("user", "who is there")))
SOME = 24  # tokens: enough to cut, stop and resume in


class Generation:
    async def test_tokens_are_counted_and_come_to_one_end(self, engine: Running) -> None:
        made = await engine.generate(PROMPT, max_tokens=SOME)
        assert made.count == SOME
        assert made.text
        assert made.finish is FinishReason.LENGTH
        assert [output.finish for output in made.outputs[:-1]] == [None] * (len(made.outputs) - 1)
        assert made.prompt_tokens > 0
        if engine.can(Capability.TOKENIZER):  # without one they are known at the end only
            assert {output.prompt_tokens for output in made.outputs} == {made.prompt_tokens}

    @pytest.mark.parametrize("prompt", [Prompt(text=PROMPT), CHAT], ids=["text", "chat"])
    @pytest.mark.parametrize("max_tokens", [1, 2, 7])
    async def test_max_tokens_is_the_most_that_is_made(self, engine: Running, prompt: Prompt, max_tokens: int) -> None:
        engine.need(Capability.IGNORE_EOS)
        made = await engine.generate(prompt, max_tokens=max_tokens)
        assert (made.count, made.finish) == (max_tokens, FinishReason.LENGTH)

    async def test_answer_ends_where_the_context_does(self, engine: Running) -> None:
        engine.need(Capability.IGNORE_EOS)
        made = await engine.generate(PROMPT, max_tokens=1_000_000)
        assert made.count == engine.info.context_tokens - made.prompt_tokens
        assert made.finish is FinishReason.LENGTH

    async def test_the_id_of_every_token_is_told(self, engine: Running) -> None:
        engine.need(Capability.TOKEN_IDS)
        made = await engine.generate(PROMPT, max_tokens=SOME)
        assert len(made.token_ids) == SOME

    async def test_ids_decode_to_the_text_special_tokens_aside(self, engine: Running) -> None:
        engine.need(Capability.TOKEN_IDS)
        made = await engine.generate(PROMPT, max_tokens=SOME)
        decode, ids = engine.tokenizer.detokenize, made.token_ids
        decoded = [await decode(ids[:count]) for count in range(1, len(ids) + 1)]
        pieces = [now.removeprefix(before) for before, now in pairwise(["", *decoded])]
        assert made.text in {decoded[-1], spelt_of(made.text, pieces)}

    async def test_greedy_sampling_repeats_itself_in_any_company(self, engine: Running) -> None:
        alone = await engine.generate(PROMPT, max_tokens=SOME)
        others = [await engine.submit(f"{word} {PROMPT}", max_tokens=SOME) for word in ("each", "some", "these")]
        again = await engine.generate(PROMPT, max_tokens=SOME)
        assert (again.text, again.token_ids) == (alone.text, alone.token_ids)
        for other in others:
            await engine.made(other)

    async def test_a_seed_repeats_itself_and_others_differ(self, engine: Running) -> None:
        engine.need(Capability.SEEDS)

        async def seeded(seed: int) -> tuple[str, tuple[int, ...]]:
            made = await engine.generate(PROMPT, max_tokens=SOME, temperature=1.0, seed=seed)
            return made.text, made.token_ids

        answers = [await seeded(seed) for seed in (7, 7, 8, 1 << 40)]
        assert answers[0] == answers[1]
        assert len(set(answers)) == 3

    async def test_text_and_its_ids_give_the_same_tokens(self, engine: Running) -> None:
        ids = await engine.tokenizer.tokenize(PROMPT, special=True)
        await _same(engine, Prompt(text=PROMPT), Prompt(token_ids=tuple(ids)))

    async def test_chat_and_its_ids_give_the_same_tokens(self, engine: Running) -> None:
        ids = await engine.tokenizer.encode_chat(CHAT.chat or ())
        await _same(engine, CHAT, Prompt(token_ids=tuple(ids)))

    async def test_chat_and_its_rendered_text_give_the_same_tokens(self, engine: Running) -> None:
        engine.need(Capability.CHAT_TEXT)
        render: Any = engine.tokenizer
        await _same(engine, CHAT, Prompt(text=await render.render(CHAT.chat)))

    async def test_turns_of_a_chat_are_told_apart(self, engine: Running) -> None:
        one = await engine.generate(Prompt(chat=(ChatMessage("user", "who is there"),)), max_tokens=1)
        two = await engine.generate(CHAT, max_tokens=1)
        assert two.prompt_tokens > one.prompt_tokens


def spelt_of(text: str, pieces: Iterable[str]) -> str:
    """As much of the text as the pieces spell, where some of them, of special tokens, are not shown in it."""
    rest = text
    for piece in pieces:
        rest = rest.removeprefix(piece)
    return text.removesuffix(rest) if rest else text


async def long_prompt(engine: Running, share: float) -> str:
    """A text that fills about this share of the context, whatever the engine takes for a token."""
    each = (await engine.generate(f"{PROMPT} {PROMPT}", max_tokens=1)).prompt_tokens / 2
    return f"{PROMPT} " * max(1, int(share * engine.info.context_tokens / each))


async def _same(engine: Running, one: Prompt, other: Prompt) -> None:
    first = await engine.generate(one, max_tokens=SOME)
    second = await engine.generate(other, max_tokens=SOME)
    assert (second.text, second.token_ids) == (first.text, first.token_ids)
    assert second.prompt_tokens == first.prompt_tokens
