"""The client's part of a request's trace: a CLIENT span `generate {model}` where the program traces, else a W3C
`traceparent` of its own, not sampled, so that every request has a trace id either way.

Names are those of OpenTelemetry's GenAI conventions, as `services/mesh/conventions.py` spells them for the mesh.
"""

import secrets
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

TRACEPARENT: Final = "traceparent"


class RequestTrace:
    """One request's span and what it says; `traceparent` and `trace_id` are valid whether or not it is recorded."""

    def __init__(self, tracer: Tracer, model: str, request_id: str, max_tokens: int | None) -> None:
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "tokenworks",
            "gen_ai.request.model": model,
            "tokenworks.request.id": request_id,
        }
        if max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = max_tokens
        # Not made the current span: a generator that is closed elsewhere could not give the context back.
        self._span: Span = tracer.start_span(f"generate {model}", kind=SpanKind.CLIENT, attributes=attributes)
        context = self._span.get_span_context()
        if context.is_valid:
            trace_id, span_id, flags = context.trace_id, context.span_id, int(context.trace_flags)
        else:
            trace_id, span_id, flags = secrets.randbits(128) or 1, secrets.randbits(64) or 1, 0
        self.trace_id = f"{trace_id:032x}"
        self.traceparent = f"00-{self.trace_id}-{span_id:016x}-{flags:02x}"

    def finished(
        self, reason: str, prompt_tokens: int, cached_prompt_tokens: int, completion_tokens: int, price_nusd: int
    ) -> None:
        self._span.set_attributes(
            {
                "gen_ai.response.finish_reasons": (reason,),
                "gen_ai.usage.input_tokens": prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": cached_prompt_tokens,
                "gen_ai.usage.output_tokens": completion_tokens,
                "tokenworks.price_nusd": price_nusd,
            }
        )
        self._span.end()

    def failed(self, reason: str, message: str) -> None:
        self._span.set_attribute("error.type", reason)
        self._span.set_status(Status(StatusCode.ERROR, message))
        self._span.end()


def default_tracer() -> Tracer:
    """The tracer of the program's own OpenTelemetry set-up; without one it records nothing."""
    return trace.get_tracer("tokenworks")
