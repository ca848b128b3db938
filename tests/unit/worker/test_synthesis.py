import hypothesis.strategies as st
from hypothesis import given

from services.worker.core import tokenizer
from services.worker.core.synthesis import SENTENCE_TOKENS, Answer, answer_key, natural_tokens

PROMPTS = st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=20)


def tokens(key: bytes, start: int, count: int) -> list[tuple[int, str]]:
    answer = Answer(key, start)
    return [answer.next_token() for _ in range(count)]


@given(PROMPTS, st.integers(0, 5), st.integers(0, 200))
def test_a_resumed_answer_goes_on_token_by_token(prompt: list[int], seed: int, start: int) -> None:
    key = answer_key("llama-3.1-8b", prompt, seed)
    assert tokens(key, start, 40) == tokens(key, 0, start + 40)[start:]


@given(PROMPTS)
def test_what_is_said_comes_back_from_its_text(prompt: list[int]) -> None:
    said = tokens(answer_key("llama-3.1-8b", prompt, 1), 0, 100)
    text = "".join(text for _, text in said)
    assert tokenizer.encode(text) == [token_id for token_id, _ in said]


def test_answers_follow_from_model_prompt_and_seed_alone() -> None:
    key = answer_key("llama-3.1-8b", [1, 2, 3], 7)
    assert key == answer_key("llama-3.1-8b", [1, 2, 3], 7)
    others = [
        answer_key("m", [1, 2, 3], 7),
        answer_key("llama-3.1-8b", [1, 2], 7),
        answer_key("llama-3.1-8b", [1, 2, 3], 8),
    ]
    assert all(tokens(key, 0, 32) != tokens(other, 0, 32) for other in others)
    assert answer_key("m", [1], None) == answer_key("m", [1], 0)


def test_answers_read_like_sentences() -> None:
    text = "".join(text for _, text in tokens(answer_key("m", [1], 0), 0, 5 * SENTENCE_TOKENS))
    sentences = text.split(". ")
    assert len(sentences) == 5
    assert all(sentence[0].isupper() for sentence in sentences)
    assert text.endswith(".")


def test_natural_lengths_are_spread_like_those_of_chats() -> None:
    lengths = sorted(natural_tokens(answer_key("m", [index], 0)) for index in range(2000))
    assert all(length % SENTENCE_TOKENS == 0 and 1 <= length <= 4096 for length in lengths)
    assert 140 <= lengths[1000] <= 190
    assert 600 <= lengths[1980] <= 1500
