"""The client library's client, with less done for what a publisher sends and has acknowledged: two of three messages.

The library cleans each header by itself, and takes every message that comes through a queue and a task. Here headers
that need no cleaning are written in one go, and acknowledgements are taken as they are read. Both stand in for methods
of the library that are its own: where a version has none of that name it goes its usual way, and all works as well.
"""

from collections.abc import Callable
from typing import Any

from nats.aio.client import Client


class BriefClient(Client):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._beginning = b""
        self._take: Callable[[bytes, bytes], bool] = _takes_nothing

    def take_at_once(self, beginning: str, take: Callable[[bytes, bytes], bool]) -> None:
        """What comes without headers on a subject that begins so is offered to `take`, with subject and body, within
        the call that read it. What `take` says False of goes the way of all others, to its subscription's callback."""
        self._beginning, self._take = beginning.encode("ascii"), take

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        if headers:
            lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
            if lines.count("\n") == lines.count("\r") == len(headers):
                head = f"NATS/1.0\r\n{lines}\r\n".encode()
                sizes = f"HPUB {subject} {reply} {len(head)} {len(head) + payload_size}\r\n".encode()
                self.stats["out_msgs"] += 1
                self.stats["out_bytes"] += payload_size
                await self._send_command(b"%b%b%b\r\n" % (sizes, head, payload))
                if self._flush_queue is not None and self._flush_queue.empty():
                    await self._flush_pending()
                return
        await super()._send_publish(subject, reply, payload, payload_size, headers)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if headers or not subject.startswith(self._beginning) or not self._take(bytes(subject), data):
            await super()._process_msg(sid, subject, reply, data, headers)


def _takes_nothing(_: bytes, __: bytes) -> bool:
    return False
