"""One thing that is fuzzed: a gRPC method, a subject of the bus, a route."""

from random import Random
from typing import Protocol


class Wrong(Exception):
    """A message was answered as none may be; the text says how."""


class Target(Protocol):
    """Attributes:
    name: as the report calls it.
    at_once: messages that may be under way.
    """

    name: str
    at_once: int

    async def one(self, rng: Random, number: int) -> str:
        """Sends one message, made from `rng` and its number alone; what came of it, in a word or two.

        Raises:
            Wrong: what came of it is a defect.
        """
        ...

    async def rest(self) -> None:
        """Lets go of what the target itself holds between its messages."""
        ...
