"""The simulated models' tokenizer: text, chats and token ids, each way, without a table to load. Pure.

A token is a known word with or without the space before it, up to four letters of another word, up to three digits, or
one byte of UTF-8. So every text has token ids and comes back from them unchanged, and English takes about as many
tokens as with a trained vocabulary. Ids of letters and digits are numbers in a base that holds their alphabet:

    0 … 15            control tokens of the chat form
    256 … 511         bytes
    1,024 … 65,535    known words
    1 << 20 …         digits, with and without a space
    1 << 24 …         letters, with and without a space
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from services.worker.core.words import WORDS

BEGIN: Final = 1  # before every prompt
_ROLE: Final = 2  # opens a message of a chat; the role's name and a line break follow
_END: Final = 3  # closes a message
_BYTES: Final = 256
_WORDS: Final = 1_024
_DIGITS: Final = 1 << 20
_LETTERS: Final = 1 << 24

_LETTER: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGIT: Final = "0123456789"
_PIECE: Final = re.compile(r" ?[A-Za-z]+| ?[0-9]{1,3}|[^A-Za-z0-9]")
_CONTROL_TEXT: Final = {0: "", BEGIN: "", _ROLE: "<|", _END: "|>"}


def _spellings() -> list[str]:
    spellings = []
    for word in WORDS:
        spellings += [word, word.capitalize(), f" {word}", f" {word.capitalize()}"]
    return spellings


_WORD_TEXT: Final = dict(enumerate(_spellings(), _WORDS))
_WORD_ID: Final = {text: token_id for token_id, text in _WORD_TEXT.items()}


def _number(characters: str, alphabet: str, spaced: bool) -> int:
    """Numbers in base len + 1, so that leading characters count; twice, for without and with a space."""
    number = 0
    for each in characters:
        number = number * (len(alphabet) + 1) + alphabet.index(each) + 1
    return number * 2 + spaced


def _characters(number: int, alphabet: str) -> str:
    number, spaced = divmod(number, 2)
    characters = ""
    while number:
        number, digit = divmod(number, len(alphabet) + 1)
        if digit == 0:
            return "\ufffd"
        characters = alphabet[digit - 1] + characters
    return f" {characters}" if spaced else characters


def _piece_ids(piece: str) -> tuple[int, ...]:
    known = _WORD_ID.get(piece)
    if known is not None:
        return (known,)
    spaced = len(piece) > 1 and piece[0] == " "
    characters = piece[1:] if spaced else piece
    if characters[0] in _DIGIT:
        return (_DIGITS + _number(characters, _DIGIT, spaced),)
    if characters[0] in _LETTER:
        return tuple(
            _LETTERS + _number(characters[start : start + 4], _LETTER, spaced and start == 0)
            for start in range(0, len(characters), 4)
        )
    return tuple(_BYTES + each for each in piece.encode("utf-8", "replace"))


def encode(text: str) -> list[int]:
    """Token ids of a text; without the token that begins a prompt."""
    seen: dict[str, tuple[int, ...]] = {}
    ids: list[int] = []
    for piece in _PIECE.findall(text):
        found = seen.get(piece)
        if found is None:
            found = seen[piece] = _piece_ids(piece)
        ids += found
    return ids


def encode_prompt(text: str) -> list[int]:
    """Token ids of a prompt in text form."""
    return [BEGIN, *encode(text)]


def encode_chat(messages: Iterable[tuple[str, str]]) -> list[int]:
    """Token ids of a chat of (role, content), ending where the assistant is to speak."""
    ids = [BEGIN]
    for role, content in messages:
        ids += [_ROLE, *encode(f"{role}\n{content}"), _END]
    return [*ids, _ROLE, *encode("assistant\n")]


def decode(token_ids: Sequence[int]) -> str:
    """The text of token ids; an id that stands for nothing, and bytes that are not UTF-8, give U+FFFD."""
    text: list[str] = []
    pending = bytearray()
    for each in token_ids:
        if _BYTES <= each < _BYTES + 256:
            pending.append(each - _BYTES)
            continue
        if pending:
            text.append(pending.decode("utf-8", "replace"))
            pending.clear()
        text.append(_text(each))
    text.append(pending.decode("utf-8", "replace"))
    return "".join(text)


def _text(token_id: int) -> str:
    if token_id >= _LETTERS:
        return _characters(token_id - _LETTERS, _LETTER)
    if token_id >= _DIGITS:
        return _characters(token_id - _DIGITS, _DIGIT)
    known = _WORD_TEXT.get(token_id)
    return known if known is not None else _CONTROL_TEXT.get(token_id, "\ufffd")
