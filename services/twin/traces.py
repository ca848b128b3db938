"""Traces of traffic: public formats in, one stream of arrivals out.

In: the lines of a file. Out: `TraceRequest`s in order of arrival, one at a time, whatever the file's length; and, for a
request, the token ids or the words of a prompt of its length. Three formats are told apart by their first line:

- Azure LLM inference traces (2023, 2024), CSV: `TIMESTAMP,ContextTokens,GeneratedTokens`.
- Mooncake traces, JSON lines: `timestamp` (ms), `input_length`, `output_length`, `hash_ids` (one per 512-token block of
  the prompt; equal ids are equal blocks).
- Ours, CSV: `arrival_s,prompt_tokens,completion_tokens` and any of `tenant`, `workload`, `slo_class`, `model`,
  `session_id`, `prompt`.

The public formats hold lengths, not words, tenants or promises; whoever replays one synthesises these and says so.
"""

import csv
import json
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import chain
from random import Random
from typing import Any, Final

from services.worker.core.words import WORDS

BLOCK_TOKENS: Final = 512  # of a Mooncake hash id
_AZURE: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_OURS: Final = ("arrival_s", "prompt_tokens", "completion_tokens")
_LABELS: Final = ("tenant", "workload", "slo_class", "model", "session_id", "prompt")
# The high byte of an id, 1 to 128: ids from 256 (below, many vocabularies keep bytes and control tokens) to 33,023,
# inside every vocabulary in the catalogue.
_HIGH_BYTE: Final = bytes((value & 0x7F) + 1 for value in range(256))

_Fields = dict[str, Any]
_Parse = Callable[[str], tuple[float, _Fields]]


class TraceInvalid(ValueError):
    """A trace cannot be read: the message names the line, what stands there, and what would do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One arrival.

    Attributes:
        arrival_s: seconds after the trace's first request; never less than the one before.
        prompt_tokens: >= 1; 0 only where `prompt` gives the words.
        completion_tokens: >= 1.
        max_tokens: of the answer, as its client asks; 0: it leaves that open.
        exact: its answer has `max_tokens`, and its client says so (`ignore_eos`).
        blocks: ids of the prompt's 512-token blocks, where the trace has them; equal ids are equal tokens.
        tenant, workload, slo_class, model, session_id, prompt: empty where the trace does not say.
    """

    arrival_s: float
    prompt_tokens: int
    completion_tokens: int
    blocks: tuple[int, ...] = ()
    tenant: str = ""
    workload: str = ""
    slo_class: str = ""
    model: str = ""
    session_id: str = ""
    prompt: str = ""
    max_tokens: int = 0
    exact: bool = False


def read(lines: Iterable[str], name: str = "trace") -> Iterator[TraceRequest]:
    """The requests of a trace in any of the three formats.

    Args:
        lines: of the file, with or without their line ends.
        name: of the file, for messages.

    Raises:
        TraceInvalid: the format is none of the three, or a line does not fit it.
    """
    numbered = enumerate(lines, 1)
    _, first = next(numbered, (1, ""))
    first = first.lstrip("\ufeff").strip()
    if first.startswith("{"):
        return _requests(chain([(1, first)], numbered), _mooncake, name)
    columns = tuple(cell.strip() for cell in first.split(","))
    if columns[:3] == _AZURE:
        return _requests(numbered, _azure, name)
    if set(_OURS) <= set(columns) <= {*_OURS, *_LABELS}:
        return _requests(numbered, partial(_ours, columns), name)
    raise TraceInvalid(
        f"{name} line 1: {first[:80]!r} starts no known trace; expected the header {','.join(_AZURE)!r} (Azure),"
        f" a JSON object with timestamp, input_length and output_length (Mooncake), or the header {','.join(_OURS)!r}"
    )


def prompt_ids(request: TraceRequest, index: int, seed: int) -> list[int]:
    """Token ids for a prompt whose words are not in the trace: (prompt_tokens,), each in [256, 33024).

    The same arguments always give the same ids. Blocks with equal ids get equal tokens, turns of one session start
    with the tokens of the turns before; other prompts share nothing, so a prefix cache saves what it would have saved.

    Args:
        index: the request's place in the trace.
        seed: of the replay.
    """
    if request.blocks:
        ids = array("H")
        for block in request.blocks:
            ids.extend(_block(seed, block))
        if len(ids) < request.prompt_tokens:
            ids.extend(_tokens(f"{seed}/request/{index}", request.prompt_tokens - len(ids)))
        return ids[: request.prompt_tokens].tolist()
    label = f"{seed}/session/{request.session_id}" if request.session_id else f"{seed}/request/{index}"
    return _tokens(label, request.prompt_tokens).tolist()


def prompt_text(request: TraceRequest, index: int, seed: int) -> str:
    """The prompt of `prompt_ids` in words, one for each id: for models that are not all served by one tokenizer.

    Equal ids give equal words, so what prompts share they share as text; tokens are about as many as words.
    """
    return " ".join(WORDS[each % len(WORDS)] for each in prompt_ids(request, index, seed))


@lru_cache(maxsize=4096)
def _block(seed: int, block: int) -> "array[int]":
    return _tokens(f"{seed}/block/{block}", BLOCK_TOKENS)


def _tokens(label: str, count: int) -> "array[int]":
    # An even number of 16-bit values: the generator works in words of 32 bits, and only whole words make a shorter
    # prompt a prefix of a longer one.
    drawn = bytearray(Random(label).randbytes(2 * (count + count % 2)))
    drawn[1::2] = drawn[1::2].translate(_HIGH_BYTE)
    ids = array("H", bytes(drawn[: 2 * count]))
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def _requests(numbered: Iterable[tuple[int, str]], parse: _Parse, name: str) -> Iterator[TraceRequest]:
    """Parses line by line, shifts arrivals so that the first is at 0, and numbers what is wrong."""
    first_s = last_s = None
    for number, text in numbered:
        line = text.strip()
        if not line:
            continue
        try:
            at_s, fields = parse(line)
            if last_s is not None and at_s < last_s:
                raise TraceInvalid(f"it arrives {last_s - at_s:.6g} s before the one above; sort the trace by arrival")
        except TraceInvalid as error:
            raise TraceInvalid(f"{name} line {number}: {error}") from error
        first_s = at_s if first_s is None else first_s
        last_s = at_s
        yield TraceRequest(arrival_s=at_s - first_s, **fields)


def _azure(line: str) -> tuple[float, _Fields]:
    cells = line.split(",")
    if len(cells) < len(_AZURE):
        raise TraceInvalid(f"{line[:80]!r} has {len(cells)} columns; {len(_AZURE)} are needed: {', '.join(_AZURE)}")
    try:
        at = datetime.fromisoformat(cells[0])
    except ValueError:
        raise TraceInvalid(
            f"TIMESTAMP {cells[0][:40]!r} is not a time; write it like 2023-11-16 18:15:46.680590"
        ) from None
    # Without a zone the trace means UTC; a zone of the reading machine would put jumps into it.
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at.timestamp(), {
        "prompt_tokens": _count("ContextTokens", cells[1]),
        "completion_tokens": _count("GeneratedTokens", cells[2]),
    }


def _mooncake(line: str) -> tuple[float, _Fields]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TraceInvalid(f"it is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise TraceInvalid(f"{line[:80]!r} is not a JSON object")
    if missing := [key for key in ("timestamp", "input_length", "output_length") if key not in row]:
        raise TraceInvalid(f"{', '.join(missing)} is missing")
    blocks = row.get("hash_ids", [])
    if not isinstance(blocks, list) or not all(isinstance(block, int) for block in blocks):
        raise TraceInvalid(f"hash_ids {str(blocks)[:80]} is not a list of whole numbers")
    prompt_tokens = _count("input_length", row["input_length"])
    most = -(-prompt_tokens // BLOCK_TOKENS)
    if len(blocks) > most:
        raise TraceInvalid(
            f"hash_ids has {len(blocks)} blocks of {BLOCK_TOKENS} tokens; input_length {prompt_tokens} fills {most}"
        )
    return _seconds("timestamp", row["timestamp"]) / 1000, {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": _count("output_length", row["output_length"]),
        "blocks": tuple(blocks),
    }


def _ours(columns: Sequence[str], line: str) -> tuple[float, _Fields]:
    cells = next(csv.reader([line]))
    if len(cells) != len(columns):
        raise TraceInvalid(f"{line[:80]!r} has {len(cells)} columns; the header names {len(columns)}")
    row = dict(zip(columns, cells, strict=True))
    fields: _Fields = {label: row[label] for label in _LABELS if label in row}
    fields["prompt_tokens"] = _count("prompt_tokens", row["prompt_tokens"], least=0 if row.get("prompt") else 1)
    fields["completion_tokens"] = _count("completion_tokens", row["completion_tokens"])
    return _seconds("arrival_s", row["arrival_s"]), fields


def _count(column: str, value: str | float, least: int = 1) -> int:
    try:
        count = int(value)
    except (ValueError, TypeError, OverflowError):
        count = -1
    if isinstance(value, float) and value != count:
        count = -1
    if count < least:
        raise TraceInvalid(f"{column} {str(value)[:40]!r} is not a whole number of at least {least}")
    return count


def _seconds(column: str, value: str | float) -> float:
    try:
        seconds = float(value)
    except (ValueError, TypeError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise TraceInvalid(f"{column} {str(value)[:40]!r} is not a time of at least 0")
    return seconds
