"""What a worker made for one stream, on its way to the client: bytes passed on unparsed, merged only where needed.

`Mailbox` holds what the client has yet to take. A client that reads slower than tokens come gets larger messages, never
a gap: what waits is merged into one, so at most `_MOST_WAITING` messages are held, and no more text than the answer's.
`Journal` holds the whole answer so far, in the form that lets another worker go on with it.
"""

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.errors import TokenworksError
from tokenworks.v1 import inference_pb2 as wire

_MOST_WAITING: Final = 32
_FOLD_AT: Final = 64


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
        if part.HasField("finish"):
            whole.finish.CopyFrom(part.finish)
    whole.text = "".join(part.text for part in parts)
    whole.token_count = sum(part.token_count for part in parts)
    return Message(whole.SerializeToString(), whole.token_count)


class Mailbox:
    """From the session that fills it to the one client that empties it."""

    def __init__(self) -> None:
        self._waiting: list[Message] = []
        self._taker: asyncio.Future[None] | None = None
        self._closed = False
        self._error: TokenworksError | None = None

    def put(self, message: Message) -> None:
        """Adds a message; ignored once closed."""
        if self._closed:
            return
        self._waiting.append(message)
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting = [merged(self._waiting)]
        self._wake()

    def close(self, error: TokenworksError | None = None) -> None:
        """Nothing more will come; `error` is raised to the client after what waits has been taken."""
        if not self._closed:
            self._closed, self._error = True, error
            self._wake()

    async def take(self) -> Message | None:
        """All that waits as one message, once something does; None at the end.

        Raises:
            TokenworksError: the stream ended with this error.
        """
        while not self._waiting:
            if self._closed:
                if self._error is not None:
                    raise self._error
                return None
            self._taker = asyncio.get_running_loop().create_future()
            try:
                await self._taker
            finally:
                self._taker = None
        waiting, self._waiting = self._waiting, []
        return merged(waiting)

    def _wake(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)


class Journal:
    """Every token received of one answer.

    Attributes:
        next_index: of the token expected next.
    """

    def __init__(self) -> None:
        self.next_index = 0
        self._unread: list[bytes] = []
        self._ids = array("I")
        self._texts: list[str] = []

    def add(self, message: Message) -> None:
        """Notes the message that begins with token `next_index`."""
        self.next_index += message.tokens
        self._unread.append(message.data)
        if len(self._unread) >= _FOLD_AT:
            self._fold()

    def resumed(self) -> tuple[Sequence[int], str]:
        """Ids and text of the tokens so far; no ids unless the engine reported each."""
        self._fold()
        return (self._ids if len(self._ids) == self.next_index else ()), "".join(self._texts)

    def _fold(self) -> None:
        parts = [wire.GenerateResponse.FromString(data) for data in self._unread]
        for part in parts:
            self._ids.extend(part.token_ids)
        self._texts.append("".join(part.text for part in parts))
        self._unread.clear()
