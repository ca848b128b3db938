"""Waiting for a condition, with a deadline."""

import asyncio
import time
from collections.abc import Callable


async def until(holds: Callable[[], bool], what: str, deadline_s: float = 20.0) -> None:
    """Returns when `holds`; fails naming `what` when it does not in time."""
    ends_s = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < ends_s, f"after {deadline_s:g} s still not so: {what}"
        await asyncio.sleep(0.002)
