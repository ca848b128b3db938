"""A stream of OpenAI's completion or chat chunks, read: tokens are counted, and the server's own count held against it.

In: chunks as parsed JSON, in order. Out: `Arrival`s. What a chunk counts is, in this order: the ids in it (vLLM and
others, asked with `return_token_ids`); how far its `usage` has gone on (`continuous_usage_stats`); one token, where it
has text. The last `usage` is compared with what was counted. Where only chunks were counted, it corrects the count
upwards, as far as the text can stand for it; everywhere else a server that says something different is complained of,
and our own count stands.
"""

from typing import Any, Final, Protocol

from services.mesh.errors import EngineFailed
from services.worker.core.measured_steps import Arrival
from services.worker.core.stop_strings import StopMatcher
from services.worker.engine import FinishReason
from services.worker.engines.request_line import Job

_SPECIAL_TOKENS: Final = 8  # that an answer may have without any text of theirs


class StreamReader(Protocol):
    """Reads one request's stream.

    Attributes:
        finished: the last arrival was given.
        complaint: what the server said that cannot be; empty while there is nothing.
    """

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
        self._sequence = job.request.sequence
        self._stop = StopMatcher(job.request.sampling.stop)
        self._shown = self._stop.feed(job.encoded.held_text)
        self._prefill = max(len(job.encoded.token_ids), job.encoded.prompt_tokens)  # not yet told
        ids = len(job.encoded.token_ids)
        self._resumed = ids - job.encoded.prompt_tokens if ids else job.request.resume_from
        self._max_tokens = job.encoded.max_tokens
        self._counted = 0
        self._text_bytes = 0
        self._exact = True  # every token so far had an id or was in a usage
        self._finish: FinishReason | None = None
        self._usage: dict[str, Any] = {}
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
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        ids = tuple(choice.get("token_ids") or ())
        count = self._count(ids, text, chunk.get("usage"))
        reason = choice.get("finish_reason")
        if reason is not None:
            self._finish = FinishReason.LENGTH if reason == "length" else FinishReason.STOP
        shown, self._shown = self._shown + self._stop.feed(text), ""
        if not count and not shown and not self._stop.stopped:
            return None
        prefill, self._prefill = (self._prefill, 0) if count else (0, self._prefill)
        self.finished = self._stop.stopped
        return Arrival(
            sequence=self._sequence,
            at_s=at_s,
            token_count=count,
            token_ids=ids,
            text=shown,
            prefill_tokens=prefill,
            finish=FinishReason.STOP if self._stop.stopped else None,
        )

    def done(self, at_s: float) -> Arrival:
        if self._finish is None:
            return self.failed(at_s, "the server ended the stream without a finish reason")
        self.finished = True
        details = self._usage.get("prompt_tokens_details") or {}
        # What was resumed is part of the prompt for the server, and not for us.
        prompt_tokens = max(0, int(self._usage.get("prompt_tokens") or 0) - self._resumed)
        return Arrival(
            sequence=self._sequence,
            at_s=at_s,
            token_count=self._missing_tokens(),
            text=self._shown + self._stop.flush(),
            prompt_tokens=prompt_tokens,
            cached_tokens=int(details.get("cached_tokens") or 0),
            finish=self._finish,
        )

    def cancelled(self, at_s: float) -> Arrival:
        self.finished = True
        text = self._shown + self._stop.flush()
        return Arrival(sequence=self._sequence, at_s=at_s, text=text, finish=FinishReason.CANCELLED)

    def failed(self, at_s: float, message: str, error: str = EngineFailed.__name__) -> Arrival:
        self.finished = True
        return Arrival(sequence=self._sequence, at_s=at_s, finish=FinishReason.ERROR, error=(error, message))

    def _count(self, ids: tuple[int, ...], text: str, usage: dict[str, Any] | None) -> int:
        """Tokens in a chunk."""
        self._text_bytes += len(text.encode())
        if ids:
            count = len(ids)
        elif usage is not None:
            count = max(0, int(usage.get("completion_tokens") or 0) - self._counted)
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
        self.complaint = f"usage says {told} completion tokens where {self._counted} came"
        return 0
