import hypothesis.strategies as st
from hypothesis import example, given

from services.worker.core import tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(TEXT)
@example(" leading, trailing and  double spaces \n\n")
@example("Internationalisation of 1234567 naïve cafés — 東京 🙂")
@example("don't STOP 007 a1b2")
def test_every_text_comes_back_from_its_token_ids(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(TEXT, TEXT)
def test_token_ids_fit_the_wire(text: str, role: str) -> None:
    ids = [*tokenizer.encode_prompt(text), *tokenizer.encode_chat([(role, text)])]
    assert all(0 <= each < 1 << 32 for each in ids)


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=50))
def test_any_token_ids_have_a_text(token_ids: list[int]) -> None:
    tokenizer.decode(token_ids).encode("utf-8")


def test_english_takes_about_as_many_tokens_as_elsewhere() -> None:
    text = (
        "The router authenticates, holds credit for the first slice of tokens, and picks a worker. Each token of a"
        " request has an index, from 0, without gaps, and the meter books it once at the price in force."
    )
    assert 3.0 < len(text) / len(tokenizer.encode(text)) < 5.0


def test_a_chat_differs_by_who_says_what() -> None:
    one = tokenizer.encode_chat([("user", "a"), ("assistant", "b")])
    other = tokenizer.encode_chat([("user", "ab")])
    assert one != other
    assert tokenizer.encode_chat([("system", "a")]) != tokenizer.encode_chat([("user", "a")])


def test_a_chat_that_goes_on_begins_with_what_was_said_before() -> None:
    first = tokenizer.encode_chat([("user", "hello")])
    answer = tokenizer.encode("The quiet lake.")
    again = tokenizer.encode_chat([("user", "hello"), ("assistant", "The quiet lake."), ("user", "more")])
    assert again[: len(first) + len(answer)] == first + answer
