"""Log probabilities as servers tell them, in the chat's form or the older one of completions. Pure."""

from typing import Any

from services.worker.engine import TokenLogprob


def read_logprobs(told: Any, most: int) -> tuple[TokenLogprob, ...]:
    """The log probabilities of a chunk's tokens, each with its `most` likeliest alternatives; empty where none is told.

    Raises:
        KeyError, TypeError, ValueError: what is told has neither form.
    """
    if not told:
        return ()
    if "content" in told:  # of a chat, and of llama.cpp's completions
        return tuple(
            TokenLogprob(each["token"], float(each["logprob"]), _chat_top(each.get("top_logprobs") or (), most))
            for each in told["content"] or ()
        )
    tokens, values = told.get("tokens") or (), told.get("token_logprobs") or ()
    tops = told.get("top_logprobs") or [{}] * len(tokens)
    return tuple(
        TokenLogprob(token, float(value), _likeliest(dict(top or {}), most))
        for token, value, top in zip(tokens, values, tops, strict=True)
    )


def _chat_top(told: Any, most: int) -> tuple[tuple[str, float], ...]:
    return tuple((each["token"], float(each["logprob"])) for each in told)[:most]


def _likeliest(told: dict[str, Any], most: int) -> tuple[tuple[str, float], ...]:
    """The server may add the token that was drawn to the likeliest ones."""
    return tuple(sorted(((text, float(value)) for text, value in told.items()), key=lambda each: -each[1])[:most])
