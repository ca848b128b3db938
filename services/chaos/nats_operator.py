"""What an operator does to a NATS server and no service should: stores messages once more, counts readers.

In: a server's URL. Out: JetStream's answers. It speaks NATS's text protocol on a connection of its own, so that the one
file that binds the mesh to its client library stays free of what only a rehearsal needs.
"""

import asyncio
import base64
import contextlib
import json
import secrets
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

from services.mesh.errors import BusUnavailable

_CALL_S: Final = 5.0
_API: Final = "$JS.API."


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as a stream holds it; `head` is its header block as it was sent, empty where it had none."""

    subject: str
    head: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Readers:
    """A stream's consumers.

    Attributes:
        reading: are durable, or somebody reads by them now.
        leaving: nobody reads by them any longer; the server removes them by itself.
        staying: nobody reads by them, and they stay.
    """

    reading: int
    leaving: int
    staying: int


class NatsOperator:
    """One connection; use `async with`. Its calls are made one after the other.

    Raises:
        BusUnavailable: from any call: the server does not answer, or says no.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._inbox = f"_INBOX.{secrets.token_hex(8)}"
        self._asked = 0

    async def __aenter__(self) -> Self:
        *others, last = self._url.split(",")
        for each in others:  # of a cluster, one that is up
            with contextlib.suppress(BusUnavailable):
                return await self._connected(each)
        return await self._connected(last)

    async def _connected(self, url: str) -> Self:
        parts = urlsplit(url)
        try:
            async with asyncio.timeout(_CALL_S):
                self._reader, self._writer = await asyncio.open_connection(parts.hostname, parts.port or 4222)
                await self._reader.readline()  # INFO
                options = {"verbose": False, "headers": True, "no_responders": True, "name": "chaos", "lang": "python"}
                if parts.username:
                    options |= {"user": parts.username, "pass": parts.password or ""}
                self._send(f"CONNECT {json.dumps(options)}\r\nSUB {self._inbox}.* 1\r\n".encode())
        except (OSError, TimeoutError) as error:
            raise BusUnavailable(f"no NATS server answers at {url}: {error!r}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self, what: str, question: object = None) -> dict[str, Any]:
        """One question of JetStream's API, e.g. `STREAM.INFO.TW_TOKENS`."""
        body = json.dumps(question).encode() if question is not None else b""
        return await self._answered(_API + what, b"", body)

    async def bounds(self, stream: str) -> tuple[int, int]:
        """Sequence numbers of the first and the last message that a stream holds."""
        state = (await self.ask(f"STREAM.INFO.{stream}"))["state"]
        return int(state["first_seq"]), int(state["last_seq"])

    async def stored(self, stream: str, sequence: int) -> Stored:
        found = (await self.ask(f"STREAM.MSG.GET.{stream}", {"seq": sequence}))["message"]
        head, body = (base64.b64decode(found.get(name, "")) for name in ("hdrs", "data"))
        return Stored(str(found["subject"]), head, body)

    async def store(self, message: Stored) -> bool:
        """Publishes a message as it is; False when the server dropped it as a duplicate."""
        answer = await self._answered(message.subject, message.head, message.body)
        return not answer.get("duplicate", False)

    async def forget_ids_after(self, stream: str, seconds: float) -> float:
        """Sets for how long a stream drops messages of the same id, >= 0.1; how long it was."""
        config = (await self.ask(f"STREAM.INFO.{stream}"))["config"]
        before_s = float(config["duplicate_window"]) / 1e9
        await self.ask(f"STREAM.UPDATE.{stream}", config | {"duplicate_window": round(seconds * 1e9)})
        return before_s

    async def readers(self, stream: str) -> Readers:
        """A stream's consumers."""
        reading = leaving = staying = 0
        while True:
            found = await self.ask(f"CONSUMER.LIST.{stream}", {"offset": reading + leaving + staying})
            for each in found.get("consumers") or []:
                config = each["config"]
                if config.get("durable_name") or each.get("push_bound") or each.get("num_waiting"):
                    reading += 1
                elif config.get("inactive_threshold"):
                    leaving += 1
                else:
                    staying += 1
            if not found.get("consumers") or reading + leaving + staying >= found["total"]:
                return Readers(reading, leaving, staying)

    async def _answered(self, subject: str, head: bytes, body: bytes) -> dict[str, Any]:
        self._asked += 1
        inbox = f"{self._inbox}.{self._asked}"
        if head:
            self._send(
                f"HPUB {subject} {inbox} {len(head)} {len(head) + len(body)}\r\n".encode() + head + body + b"\r\n"
            )
        else:
            self._send(f"PUB {subject} {inbox} {len(body)}\r\n".encode() + body + b"\r\n")
        try:
            async with asyncio.timeout(_CALL_S):
                while True:
                    came_on, answer = await self._next()
                    if came_on == inbox:
                        break
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise BusUnavailable(f"NATS did not answer on {subject}: {error!r}") from error
        found: dict[str, Any] = json.loads(answer) if answer else {"error": {"description": "nobody answers"}}
        if refusal := found.get("error"):
            raise BusUnavailable(f"NATS refused {subject}: {refusal.get('description', refusal)}")
        return found

    async def _next(self) -> tuple[str, bytes]:
        """Subject and body of the next message; pings are answered on the way."""
        while True:
            line = await self._reader.readline()
            if not line:
                raise ConnectionResetError("the server closed the connection")
            verb, *words = line.split()
            if verb == b"PING":
                self._send(b"PONG\r\n")
            elif verb == b"MSG":
                body = await self._reader.readexactly(int(words[-1]) + 2)
                return words[0].decode(), body[:-2]
            elif verb == b"HMSG":
                head, both = int(words[-2]), int(words[-1])
                message = await self._reader.readexactly(both + 2)
                return words[0].decode(), message[head:-2]
            elif verb == b"-ERR":
                raise ConnectionResetError(line.decode(errors="replace").strip())

    def _send(self, line: bytes) -> None:
        self._writer.write(line)
