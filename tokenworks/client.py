"""The client: streams tokens from a mesh, and asks it what it serves and why a request went where it went.

    async with Client("127.0.0.1:7600", key) as client:
        async with client.generate(text="Once upon a time", max_tokens=40) as stream:
            async for piece in stream:
                print(piece.text, end="")
        print(stream.result)

In: a router's address, or several routers', and a tenant's key. Out: `Generation`s. By default the router only says
which worker a request goes to, and its tokens come straight from there; where workers can't be reached, or the mesh
hands out no placements, the router relays. Channels are kept open and warm for all of a client's requests, so a request
costs no connection. Every request carries a W3C `traceparent` and a request id, which is its idempotency key.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc
from opentelemetry.trace import Tracer

from tokenworks.channels import addresses_of
from tokenworks.errors import CallError, error_of
from tokenworks.identity import new_request_id
from tokenworks.paths import Paths
from tokenworks.stream import Generation
from tokenworks.tracing import RequestTrace, default_tracer
from tokenworks.v1 import inference_pb2 as wire

DEFAULT_MODEL: Final = "smollm2-135m-instruct"
_ANOTHER_MAY_KNOW: Final = frozenset({"Unreachable", "RequestTimedOut", "UnknownRequest"})


class Client:
    """A tenant's view of a mesh. Make it inside the event loop that uses it; close it, or use `async with`.

    Args:
        address: `host:port` of a router's gRPC, or several: the first that answers is asked.
        key: the tenant's key.
        direct: stream from the workers where that is possible; else, and where it is not, the router relays.
        deadline_s: > 0; how long a stream, or a question, may take unless its call says otherwise.
        max_attempts: >= 1; calls made for one stream while no token has arrived and waiting can help.
        tracer: makes the CLIENT spans; without it the program's own OpenTelemetry set-up is used, if there is one.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        key: str,
        *,
        direct: bool = True,
        deadline_s: float = 600.0,
        max_attempts: int = 4,
        tracer: Tracer | None = None,
    ) -> None:
        if deadline_s <= 0 or max_attempts < 1:
            raise ValueError(f"deadline_s {deadline_s} must be > 0 and max_attempts {max_attempts} >= 1")
        loop = asyncio.get_running_loop()
        self._paths = Paths(addresses_of(address), key, direct=direct, now_s=loop.time)
        self._deadline_s = deadline_s
        self._max_attempts = max_attempts
        self._tracer = tracer or default_tracer()

    @property
    def address(self) -> str:
        """Of the router asked at present."""
        return self._paths.address

    def generate(
        self,
        *,
        text: str | None = None,
        token_ids: Sequence[int] | None = None,
        chat: Sequence[Mapping[str, Any]] | None = None,
        model: str = DEFAULT_MODEL,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        logprobs: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] | None = None,
        slo_class: str = "",
        workload: str = "",
        session_id: str = "",
        request_id: str = "",
        deadline_s: float | None = None,
        max_attempts: int | None = None,
    ) -> Generation:
        """A request; it is sent when the stream is first read.

        Args:
            text, token_ids, chat: the prompt, in exactly one form; chat is `{"role": …, "content": …}` per turn, and
                `tool_calls`, `tool_call_id` and `name` as OpenAI's messages have them.
            max_tokens, temperature, top_p, top_k, seed, stop: None or empty: the engine's default. See `Sampling` in
                `protos/tokenworks/v1/inference.proto` for the ranges.
            ignore_eos: go on to max_tokens.
            logprobs: of each token, with so many alternatives, 0 to 20.
            response_format, tools, tool_choice: as in OpenAI's API. Refused by name where no engine of the model has
                them; an answer with one of them, or with logprobs, is not gone on with elsewhere when it breaks.
            slo_class: the promise asked for; empty: the mesh's default.
            workload: a label for who wants what; usage can be grouped by it.
            session_id: turns that share a prefix.
            request_id: idempotency key; made here when empty.
            deadline_s, max_attempts: instead of the client's.

        Raises:
            ValueError: not exactly one of text, token_ids and chat is given.
        """
        given = [
            name for name, prompt in (("text", text), ("token_ids", token_ids), ("chat", chat)) if prompt is not None
        ]
        if len(given) != 1:
            raise ValueError(f"exactly one of text, token_ids and chat is needed, not {', '.join(given) or 'none'}")
        request = wire.GenerateRequest(
            request_id=request_id or new_request_id(),
            model=model,
            sampling=wire.Sampling(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                stop=stop,
                ignore_eos=ignore_eos,
                frequency_penalty=frequency_penalty,
                presence_penalty=presence_penalty,
                logprobs=logprobs,
            ),
            response_format_json=json.dumps(response_format) if response_format else "",
            tools_json=json.dumps(list(tools)) if tools else "",
            tool_choice_json=json.dumps(tool_choice) if tool_choice else "",
            slo_class=slo_class,
            workload=workload,
            session_id=session_id,
        )
        if text is not None:
            request.text = text
        elif token_ids is not None:
            request.token_ids.ids.extend(token_ids)
            request.token_ids.SetInParent()
        elif chat is not None:
            request.chat.messages.extend(map(_message, chat))
            request.chat.SetInParent()
        return Generation(
            self._paths,
            request,
            RequestTrace(self._tracer, model, request.request_id, max_tokens),
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
            max_attempts=self._max_attempts if max_attempts is None else max_attempts,
        )

    async def models(self, *, deadline_s: float = 10.0) -> Sequence[wire.Model]:
        """What the mesh serves now. Raises CallError."""
        answer: wire.ListModelsResponse = await self._ask("ListModels", wire.ListModelsRequest(), deadline_s)
        return answer.models

    async def explain(self, request_id: str, *, deadline_s: float = 10.0) -> wire.Explanation:
        """Why a request of this tenant went where it went: candidates, best first, with their scores in dollars.

        Raises:
            CallError: `reason` "UnknownRequest" when no router remembers it any longer.
        """
        found: wire.Explanation = await self._ask("Explain", wire.ExplainRequest(request_id=request_id), deadline_s)
        return found

    async def connected(self, deadline_s: float = 10.0) -> None:
        """Waits until the channel is up. Raises CallError: `reason` "Unreachable"."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._paths.channel.channel_ready()
        except TimeoutError:
            raise CallError(
                "Unreachable",
                f"no router answers at {self.address} within {deadline_s:g} s; is the mesh up?",
                code=grpc.StatusCode.UNAVAILABLE,
            ) from None

    async def close(self) -> None:
        """Closes the channels; streams that still run are cancelled."""
        await self._paths.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, method: str, question: Any, deadline_s: float) -> Any:
        """The answer of the first router that has one. Raises CallError: what the last of them said."""
        for router in self._paths.routers:
            ask = getattr(router, method)
            try:
                return await ask(question, timeout=deadline_s, metadata=(self._paths.authorization,))
            except grpc.aio.AioRpcError as error:
                failure, cause = error_of(error), error
                if failure.reason not in _ANOTHER_MAY_KNOW:
                    break
        raise failure from cause


def _message(turn: Mapping[str, Any]) -> wire.ChatMessage:
    """One turn of a chat; an assistant's that only calls tools has no content."""
    calls = turn.get("tool_calls")
    return wire.ChatMessage(
        role=turn["role"],
        content=turn.get("content") or "",
        tool_calls_json=json.dumps(calls) if calls else "",
        tool_call_id=turn.get("tool_call_id", ""),
        name=turn.get("name", ""),
    )
