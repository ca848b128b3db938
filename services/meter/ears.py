"""What whoever leads wants to hear of what its process books; nobody wants to before it leads."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.meter.booked import Booked
from services.meter.bookkeeper import Bookkeeper
from services.meter.core.conservation import Finding


async def _taken(_: Bookkeeper) -> None:
    return


@dataclass(slots=True)
class Ears:
    """Called in the event loop.

    Attributes:
        booked: what became of a batch.
        repaired: what was read from the streams again.
        taken: a shard is this process's from now on; awaited before anything new of it is booked.
    """

    booked: Callable[[Booked], None] = lambda _: None
    repaired: Callable[[Finding], None] = lambda _: None
    taken: Callable[[Bookkeeper], Awaitable[None]] = _taken
