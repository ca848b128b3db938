"""What a client reads, as cheaply as it can be read: a token is one `~k` in the text, whatever carries it.

In: bytes as they arrive, in pieces of any length. Out: how many tokens they hold, and whether the answer is over. The
backends write one `~k` per token, and it stands nowhere else in an answer: not in JSON around the text, and not in
protobuf, where `~` may be a length or a number but `k` is no field's tag. So server-sent events and protobuf messages
are counted alike, without being parsed.
"""

from enum import Enum
from typing import Final

TOKEN: Final = b"~k"
TOKEN_TEXT: Final = " to~k"  # of every token
_HEAD_END: Final = b"\r\n\r\n"
_CHUNKED_END: Final = b"0\r\n\r\n"
_DONE: Final = b"data: [DONE]"
_ERROR: Final = b'"error"'
_LONGEST_HEAD: Final = 64 << 10
_LOOK_BACK: Final = 64


class TokenCounter:
    """Counts over pieces of a body that may be cut anywhere."""

    __slots__ = ("_cut",)

    def __init__(self) -> None:
        self._cut = False  # the piece before ended with the first half of a token's mark

    def feed(self, data: bytes) -> int:
        """The tokens that `data`, which follows what was fed before, completes."""
        count = data.count(TOKEN)
        if self._cut and data.startswith(TOKEN[1:]):
            count += 1
        if data:
            self._cut = data.endswith(TOKEN[:1])
        return count


class End(Enum):
    """How an HTTP answer stands."""

    OPEN = "open"
    WHOLE = "whole"  # the body is complete, and the stream said that it was done
    BROKEN = "broken"  # refused, or ended with an error


class HttpAnswer:
    """One HTTP/1.1 answer of server-sent events.

    Attributes:
        status: of the status line; 0 before it came.
        tokens: so far.
        close: the server closes the connection after this answer.
    """

    __slots__ = (
        "_chunked",
        "_counter",
        "_done",
        "_error",
        "_head",
        "_left",
        "_tail",
        "close",
        "end",
        "status",
        "tokens",
    )

    def __init__(self) -> None:
        self.status = 0
        self.tokens = 0
        self.end = End.OPEN
        self.close = False
        self._head: bytes | None = b""
        self._chunked = False
        self._left = -1  # bytes of a body of known length that are still to come; -1: until the end is seen
        self._done = False
        self._error = False
        self._tail = b""
        self._counter = TokenCounter()

    def feed(self, data: bytes) -> int:
        """The tokens in `data`, which follows what was fed before."""
        if self._head is not None:
            self._head += data
            head, separator, data = self._head.partition(_HEAD_END)
            if not separator:
                if len(head) > _LONGEST_HEAD:
                    self.end = End.BROKEN
                return 0
            self._head = None
            self._read_head(head)
            if not data and self._left != 0:
                return 0
        count = self._counter.feed(data)
        self.tokens += count
        seen = self._tail + data
        end = self._tail = seen[-_LOOK_BACK:]  # the last event and the last chunk come last
        self._done = self._done or _DONE in end
        self._error = self._error or _ERROR in seen
        if self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._finish()
        elif self._chunked and end.endswith(_CHUNKED_END):
            self._finish()
        return count

    def closed(self) -> None:
        """The connection is gone."""
        if self.end is End.OPEN:
            if self._head is None and not self._chunked and self._left < 0:
                self._finish()
            else:
                self.end = End.BROKEN

    def _read_head(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        self.status = int(lines[0].split(b" ", 2)[1])
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name, value = name.lower(), value.strip().lower()
            if name == b"transfer-encoding":
                self._chunked = value == b"chunked"
            elif name == b"content-length":
                self._left = int(value)
            elif name == b"connection":
                self.close = value == b"close"

    def _finish(self) -> None:
        whole = self.status == 200 and self._done and not self._error
        self.end = End.WHOLE if whole else End.BROKEN
