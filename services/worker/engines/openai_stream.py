"""A stream of OpenAI's completion or chat chunks, read: tokens are counted, and the server's own count held against it.

In: chunks as parsed JSON, in order. Out: `Arrival`s. What a chunk counts is, in this order: the ids in it (vLLM and
others, asked with `return_token_ids`); how far the server's counter in it has gone on (`continuous_usage_stats`,
llama.cpp's timings); one token, where it has text. The last `usage` is compared with what was counted. Where only
chunks were counted, it corrects the count upwards, as far as the text can stand for it; everywhere else a server that
says something different is complained of, and our own count stands.
"""

import json
from typing import Any, Final, Protocol

from services.mesh.errors import EngineFailed, Unsupported
from services.mesh.features import LOGPROBS
from services.worker.core.measured_steps import Arrival
from services.worker.core.stop_strings import StopMatcher
from services.worker.engine import FinishReason, TokenLogprob, joined_lists
from services.worker.engines.openai_logprobs import read_logprobs
from services.worker.engines.request_line import Job

_SPECIAL_TOKENS: Final = 8  # that an answer may have without any text of theirs
_TEMPLATE_TOKENS: Final = 512  # that a chat's template may add
_TOKENS_PER_MESSAGE: Final = 32  # of these, for each message


class StreamReader(Protocol):
    """Reads one request's stream.

    Attributes:
        begun: something was given already.
        finished: the last arrival was given.
        complaint: what the server said that cannot be; empty while there is nothing.
    """

    begun: bool
    finished: bool
    complaint: str

    def read(self, chunk: dict[str, Any], at_s: float) -> Arrival | None: ...

    def done(self, at_s: float) -> Arrival:
        """The server has ended the stream, in order or not; the last arrival, if none was given yet."""
        ...

    def cancelled(self, at_s: float) -> Arrival: ...

    def failed(self, at_s: float, message: str, error: str = EngineFailed.__name__) -> Arrival: ...


class CompletionReader:
    """A `StreamReader` of `/v1/completions` and `/v1/chat/completions`."""

    def __init__(self, job: Job) -> None:
        request = job.request
        self._sequence = request.sequence
        self._stop = StopMatcher(request.sampling.stop)
        self._shown = self._stop.feed(job.encoded.held_text)  # goes out with the next token
        self._calls = ""  # so do these
        self._prefill = max(len(job.encoded.token_ids), job.encoded.prompt_tokens)  # not yet told
        ids = len(job.encoded.token_ids)
        self._resumed = ids - job.encoded.prompt_tokens if ids else request.resume_from
        self._logprobs = request.sampling.logprobs
        self._parsed = bool(request.tools_json)  # tokens that the server's parser keeps back have no ids
        self._max_tokens = job.encoded.max_tokens
        self._prompt_ids = 0 if request.tools_json else len(job.encoded.token_ids)
        self._prompt_most = _most_prompt_tokens(job)
        self._counted = 0
        self._text_bytes = 0
        self._exact = True  # every token so far had an id or was in a usage
        self._finish: FinishReason | None = None
        self._usage: dict[str, Any] = {}
        self.begun = False
        self.finished = False
        self.complaint = ""

    def read(self, chunk: dict[str, Any], at_s: float) -> Arrival | None:
        assert not self.finished
        if (error := chunk.get("error")) is not None:
            message = error.get("message", error) if isinstance(error, dict) else error
            return self.failed(at_s, f"the server broke off the stream: {message}")
        self._usage = chunk.get("usage") or self._usage
        choices = chunk.get("choices") or ()
        if not choices:
            return self.done(at_s) if self._finish is not None and chunk.get("usage") else None
        (choice, *_) = choices
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or ""
        if calls := delta.get("tool_calls"):
            self._calls = joined_lists(self._calls, json.dumps(calls))
        ids = tuple(choice.get("token_ids") or ())
        silent = delta.get("reasoning_content") or delta.get("reasoning") or calls
        count = self._count(ids, text or (json.dumps(silent) if silent else ""), _counter(chunk))
        reason = choice.get("finish_reason")
        if reason is not None:
            self._finish = FinishReason.LENGTH if reason == "length" else FinishReason.STOP
        self._shown += self._stop.feed(text)
        self.finished = self._stop.stopped
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._logprobs is not None and count:
            logprobs = read_logprobs(choice.get("logprobs"), self._logprobs)[:count]
            if not logprobs:
                return self.failed(at_s, f"{LOGPROBS}: the server tells none", Unsupported.__name__)
        if not count and not self.finished:
            return None
        prefill, self._prefill = (self._prefill, 0) if count else (0, self._prefill)
        shown, self._shown = self._shown, ""
        tool_calls_json, self._calls = self._calls, ""
        self.begun = True
        return Arrival(
            sequence=self._sequence,
            at_s=at_s,
            token_count=count,
            token_ids=ids if len(ids) == count else (),
            text=shown,
            prefill_tokens=prefill,
            finish=FinishReason.STOP if self._stop.stopped else None,
            logprobs=logprobs,
            tool_calls_json=tool_calls_json,
        )

    def done(self, at_s: float) -> Arrival:
        if self._finish is None:
            return self.failed(at_s, "the server ended the stream without a finish reason")
        self.finished = True
        details = self._usage.get("prompt_tokens_details") or {}
        return Arrival(
            sequence=self._sequence,
            at_s=at_s,
            token_count=self._missing_tokens(),
            text=self._shown + self._stop.flush(),
            prompt_tokens=self._prompt_tokens(),
            cached_tokens=int(details.get("cached_tokens") or 0),
            finish=self._finish,
            tool_calls_json=self._calls,
        )

    def cancelled(self, at_s: float) -> Arrival:
        self.finished = True
        text = self._shown + self._stop.flush()
        return Arrival(sequence=self._sequence, at_s=at_s, text=text, finish=FinishReason.CANCELLED)

    def failed(self, at_s: float, message: str, error: str = EngineFailed.__name__) -> Arrival:
        self.finished = True
        return Arrival(sequence=self._sequence, at_s=at_s, finish=FinishReason.ERROR, error=(error, message))

    def _count(self, ids: tuple[int, ...], text: str, counter: int | None) -> int:
        """Tokens in a chunk."""
        self._text_bytes += len(text.encode())
        if ids and not (self._parsed and counter is not None):
            count = len(ids)
        elif counter is not None:
            count = max(0, counter - self._counted)
        else:
            count = 1 if text else 0
            self._exact = self._exact and not count
        self._counted += count
        return count

    def _missing_tokens(self) -> int:
        """Tokens that the last usage tells beyond those counted, as far as it can be believed."""
        if "completion_tokens" not in self._usage:
            return 0
        told = int(self._usage["completion_tokens"])
        if told == self._counted:
            return 0
        believable = self._counted < told <= min(self._max_tokens, self._text_bytes + _SPECIAL_TOKENS)
        if believable and not self._exact:
            missing, self._counted = told - self._counted, told
            return missing
        self._complain(f"usage says {told} completion tokens where {self._counted} came")
        return 0

    def _prompt_tokens(self) -> int:
        """Of the prompt, as the server tells, where it can be believed; 0: as was known before."""
        if "prompt_tokens" not in self._usage:
            return 0
        told = int(self._usage["prompt_tokens"])
        if self._prompt_ids:
            if told != self._prompt_ids:
                self._complain(f"usage says {told} prompt tokens where {self._prompt_ids} were sent")
            return 0
        if not 0 < told <= self._prompt_most:
            self._complain(f"usage says {told} prompt tokens where the text can make {self._prompt_most} at most")
            return 0
        return max(0, told - self._resumed)  # what was resumed is part of the prompt for the server, and not for us

    def _complain(self, what: str) -> None:
        self.complaint = f"{self.complaint}; {what}" if self.complaint else what


def _counter(chunk: dict[str, Any]) -> int | None:
    """The server's count of the answer so far, where the chunk has it."""
    if (usage := chunk.get("usage")) is not None:
        return int(usage.get("completion_tokens") or 0)
    if (timings := chunk.get("timings")) is not None and "predicted_n" in timings:
        return int(timings["predicted_n"])
    return None


def _most_prompt_tokens(job: Job) -> int:
    """The most tokens that a prompt sent as text can be: one per byte, and what a template adds."""
    request, prompt = job.request, job.request.prompt
    if prompt.token_ids is not None:
        return len(prompt.token_ids) + _SPECIAL_TOKENS
    text = len(((prompt.text or "") + request.resumed_text).encode())
    if prompt.chat is None:
        return text + _SPECIAL_TOKENS
    sent = sum(len("".join(message).encode()) for message in prompt.chat) + len(request.tools_json.encode())
    return sent + _TOKENS_PER_MESSAGE * len(prompt.chat) + _TEMPLATE_TOKENS
