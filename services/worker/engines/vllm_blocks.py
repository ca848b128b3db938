"""vLLM's KV events: what its prefix cache stores and drops, read from the socket that its engine core publishes on.

In: messages of (topic, number, batch of events). Out: `BlockChange`s. vLLM itself is not imported.

A gap in the numbers means that events were lost. What the cache holds is not known any more then, so it is told as
cleared: blocks that are there and not known of cost a little speed; blocks that are not there and counted on mislead.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from services.worker.engine import BlockChange, BlockKind, OnBlocks

TOPIC: Final = "kv"
_DEVICE: Final = {None, "GPU"}  # vLLM's word for the accelerator's memory, whatever it is; others are slower tiers


def block_changes(events: Iterable[Any]) -> list[BlockChange]:
    """The changes that a batch of vLLM's KV events tells of: of the accelerator's memory, and of the first group of
    layers where there are several."""
    changes = []
    for event in events:
        kind = type(event).__name__
        if kind == "AllBlocksCleared":
            changes.append(BlockChange(kind=BlockKind.CLEARED))
        elif event.medium not in _DEVICE or event.group_idx not in {None, 0}:
            continue
        elif kind == "BlockRemoved":
            changes.append(BlockChange(kind=BlockKind.REMOVED, hashes=tuple(event.block_hashes)))
        elif kind == "BlockStored" and event.lora_name is None:
            changes.append(
                BlockChange(
                    kind=BlockKind.STORED,
                    hashes=tuple(event.block_hashes),
                    parent=event.parent_block_hash,
                    token_ids=tuple(event.token_ids),
                    block_tokens=event.block_size,
                )
            )
    return changes


class BlockReader:
    """Reads the events of one engine core, from before it starts until `close`."""

    def __init__(self, on_blocks: OnBlocks, decode: Callable[[bytes], Any]) -> None:
        """`decode`: from a message to vLLM's batch, an object with `events`; raises what a broken message makes it."""
        import zmq.asyncio

        self._on_blocks = on_blocks
        self._decode = decode
        self._directory = Path(tempfile.mkdtemp(prefix="tokenworks-kv-"))
        self.endpoint: Final = f"ipc://{self._directory}/events"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt_string(zmq.SUBSCRIBE, TOPIC)
        self._socket.connect(self.endpoint)  # as soon as the core has bound it
        self._next = 0
        self._task = asyncio.create_task(self._run(), name="vllm-blocks")

    async def _run(self) -> None:
        while True:
            _, number, payload = await self._socket.recv_multipart()
            self._read(int.from_bytes(number, "big"), payload)

    def _read(self, number: int, payload: bytes) -> None:
        changes = block_changes(self._decode(payload).events)
        if number != self._next:
            changes.insert(0, BlockChange(kind=BlockKind.CLEARED))
        self._next = number + 1
        if changes:
            self._on_blocks(changes)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)
        shutil.rmtree(self._directory, ignore_errors=True)
