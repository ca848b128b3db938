"""A service for the supervisor's tests: `BEHAVIOUR` is what it does, `PORT` where it answers `/readyz`."""

import asyncio
import os
import signal
import sys


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    failing = os.environ["BEHAVIOUR"] == "failing"
    writer.write(b"HTTP/1.0 503 X\r\n\r\nfailed: no such model\n" if failing else b"HTTP/1.0 200 OK\r\n\r\nready\n")
    await writer.drain()
    writer.close()


async def main() -> int:
    behaviour = os.environ["BEHAVIOUR"]
    print(f"{behaviour} as {os.getpid()}", flush=True)
    if behaviour == "crash":
        print("what went wrong", file=sys.stderr)
        return 3
    ending = asyncio.Event()
    stop = (lambda: None) if behaviour == "stubborn" else ending.set
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    if behaviour != "never ready":
        await asyncio.start_server(_answer, "127.0.0.1", int(os.environ["PORT"]))
    await ending.wait()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
