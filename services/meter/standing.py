"""What stands in the streams: price books and budgets, for books that are made, or caught up, from the streams."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.mesh.bus import Bus, Delivered
from services.mesh.errors import SettingInvalid
from services.mesh.events import CreditChanged, PriceBookOpened
from services.mesh.settings import PriceBook
from services.mesh.subjects import CREDIT, PRICES


@dataclass(frozen=True, slots=True)
class Standing:
    """`price_books`: each with when it was first in force, milliseconds since 1970, oldest first."""

    price_books: Sequence[tuple[PriceBook, int]]
    budgets: Sequence[CreditChanged]


async def read_standing(bus: Bus) -> Standing:
    """Reads both.

    Raises:
        BusUnavailable: the connection was lost; start over.
        SettingInvalid: a price book in the stream cannot be read.
    """
    opened: dict[str, PriceBookOpened] = {}
    budgets: dict[str, CreditChanged] = {}

    async def note(messages: Sequence[Delivered]) -> None:
        for message in messages:
            if isinstance(message.event, PriceBookOpened):
                opened[message.event.label] = message.event
            elif isinstance(message.event, CreditChanged):
                budgets[message.event.tenant] = message.event

    await bus.replay([PRICES], note)
    await bus.replay([CREDIT], note)
    books = sorted(((_price_book(each), each.first_unix_ms) for each in opened.values()), key=lambda pair: pair[1])
    return Standing(books, list(budgets.values()))


def _price_book(event: PriceBookOpened) -> PriceBook:
    try:
        return PriceBook.model_validate_json(event.body_json)
    except ValueError as error:
        raise SettingInvalid(f"the stream's price book {event.label!r} cannot be read: {error}") from error
