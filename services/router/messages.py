"""What a worker made for one stream, on its way to the client: bytes passed on unparsed, merged only where needed.

`Mailbox` passes each message on as it comes, within the call that brought it: nobody is woken for a token. A client
that reads slower than tokens come gets larger messages, never a gap: what its side does not take yet is merged.
`Journal` holds the whole answer so far, in the form that lets another worker go on with it.
"""

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from services.mesh.errors import TokenworksError
from tokenworks.v1 import inference_pb2 as wire

MOST_HELD_BYTES: Final = 256 << 10  # for a client that does not read; about 20,000 tokens
_MERGE_AT: Final = 32
_FOLD_AT: Final = 64
_OBJECT_BYTES: Final = 41  # of a bytes object beside its content, and the list's reference


@dataclass(slots=True)
class Message:
    """A serialised GenerateResponse with `tokens` tokens."""

    data: bytes
    tokens: int


def merged(messages: Sequence[Message]) -> Message:
    """One message that says what several consecutive ones say."""
    if len(messages) == 1:
        return messages[0]
    parts = [wire.GenerateResponse.FromString(each.data) for each in messages]
    whole = parts[0]
    for part in parts[1:]:
        whole.token_ids.extend(part.token_ids)
        whole.logprobs.extend(part.logprobs)
        if part.HasField("finish"):
            whole.finish.CopyFrom(part.finish)
    whole.text = "".join(part.text for part in parts)
    whole.token_count = sum(part.token_count for part in parts)
    calls = [call for part in parts if part.tool_calls_json for call in json.loads(part.tool_calls_json)]
    if calls:
        whole.tool_calls_json = json.dumps(calls)
    return Message(whole.SerializeToString(), whole.token_count)


class Sink(Protocol):
    """The client's side of a stream. Neither method awaits or raises."""

    def message(self, data: bytes) -> bool:
        """Sends a serialised GenerateResponse; False, with nothing sent, when its client takes no more now: it is
        offered again at the next `Mailbox.flush`."""

    def ended(self, error: TokenworksError | None) -> None:
        """Everything was sent, and nothing follows."""


class Mailbox:
    """From whoever fills it to one sink, which may come later.

    Args:
        on_sent: called with the number of tokens in each message that the sink took.
    """

    def __init__(self, on_sent: Callable[[int], None]) -> None:
        self._on_sent = on_sent
        self._sink: Sink | None = None
        self._held: list[Message] = []
        self._closed = self._told = False
        self._error: TokenworksError | None = None

    def attach(self, sink: Sink) -> None:
        """Gives it what waits, and from now on what comes."""
        self._sink = sink
        self.flush()

    def put(self, data: bytes, tokens: int) -> bool:
        """Sends a message, or holds it; ignored once closed. False when more is held than may be: the client does not
        read."""
        if self._closed:
            return True
        if not self._held and self._sink is not None and self._sink.message(data):
            self._on_sent(tokens)
            return True
        self._held.append(Message(data, tokens))
        if len(self._held) >= _MERGE_AT:
            self._held = [merged(self._held)]
        return len(self._held[0].data) <= MOST_HELD_BYTES

    def close(self, error: TokenworksError | None = None) -> None:
        """Nothing more will come; the sink is told, with `error`, once it has taken what is held."""
        if not self._closed:
            self._closed, self._error = True, error
            self.flush()

    def flush(self) -> None:
        """Offers the sink what is held, as one message; to be called when its client takes more."""
        if self._sink is None:
            return
        if self._held:
            whole = merged(self._held)
            if not self._sink.message(whole.data):
                self._held = [whole]
                return
            self._held = []
            self._on_sent(whole.tokens)
        if self._closed and not self._told:
            self._told = True
            self._sink.ended(self._error)


@dataclass(slots=True)
class Unread:
    """How much the journals of one router hold as it came; beyond `most_bytes` they read it and keep the tokens only.

    Reading costs more than the rest of a token's way, and is in vain for every answer that ends well.
    """

    most_bytes: int = 32 << 20
    held_bytes: int = 0


class Journal:
    """Every token of one answer, those that its client brought along included; to be given up by `close`.

    Args:
        ids, text: of the tokens that exist already; no ids where they are not known.
        count: how many those are.

    Attributes:
        next_index: of the token expected next.
    """

    def __init__(self, unread: Unread, ids: Sequence[int] = (), text: str = "", count: int = 0) -> None:
        self.next_index = count
        self._all_unread = unread
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._ids = array("I", ids)
        self._texts: list[str] = [text] if text else []

    def add(self, data: bytes, tokens: int) -> None:
        """Notes the message that begins with token `next_index`."""
        self.next_index += tokens
        self._unread.append(data)
        size = len(data) + _OBJECT_BYTES
        self._unread_bytes += size
        self._all_unread.held_bytes += size
        if len(self._unread) >= _FOLD_AT and self._all_unread.held_bytes > self._all_unread.most_bytes:
            self._fold()

    def resumed(self) -> tuple[Sequence[int], str]:
        """Ids and text of the tokens so far; no ids unless the engine reported each."""
        self._fold()
        return (self._ids if len(self._ids) == self.next_index else ()), "".join(self._texts)

    def close(self) -> None:
        """Nothing of it is needed any more. Again changes nothing."""
        self._forget_unread()

    def _fold(self) -> None:
        parse, texts = wire.GenerateResponse.FromString, []
        for data in self._unread:
            part = parse(data)
            self._ids.extend(part.token_ids)
            texts.append(part.text)
        self._texts.append("".join(texts))
        self._forget_unread()

    def _forget_unread(self) -> None:
        self._unread.clear()
        self._all_unread.held_bytes -= self._unread_bytes
        self._unread_bytes = 0
