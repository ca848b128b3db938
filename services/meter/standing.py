"""What stands in the streams: price books, re-ratings, budgets; for books that are made, or caught up, from there."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.mesh.bus import Bus, Delivered
from services.mesh.errors import SettingInvalid
from services.mesh.events import BudgetsSet, CreditChanged, PriceBookOpened, PricesRerated
from services.mesh.price_calendar import OpenedBook, Rerating
from services.mesh.subjects import BUDGETS, CREDIT, PRICES, RERATED


@dataclass(frozen=True, slots=True)
class Standing:
    """`price_books`: in the order in which they become effective."""

    price_books: Sequence[OpenedBook]
    reratings: Sequence[Rerating]
    budgets: Sequence[CreditChanged]
    budgets_set: Sequence[BudgetsSet]


async def read_standing(bus: Bus) -> Standing:
    """Reads all of it.

    Raises:
        BusUnavailable: the connection was lost; start over.
        SettingInvalid: a price book in the stream cannot be read.
    """
    opened: dict[str, PriceBookOpened] = {}
    reratings: dict[str, Rerating] = {}
    budgets: dict[str, CreditChanged] = {}
    budgets_set: dict[str, BudgetsSet] = {}

    async def note(messages: Sequence[Delivered]) -> None:
        for message in messages:
            if isinstance(message.event, PriceBookOpened):
                opened[message.event.label] = message.event
            elif isinstance(message.event, PricesRerated):
                reratings[message.event.rerating] = Rerating.of(message.event)
            elif isinstance(message.event, CreditChanged):
                budgets[message.event.tenant] = message.event
            elif isinstance(message.event, BudgetsSet):
                budgets_set[message.event.tenant] = message.event

    await bus.replay([PRICES, RERATED], note)
    await bus.replay([CREDIT], note)
    await bus.replay([BUDGETS], note)
    books = sorted((_opened(each) for each in opened.values()), key=lambda each: each.effective_unix_ms)
    return Standing(books, list(reratings.values()), list(budgets.values()), list(budgets_set.values()))


def _opened(event: PriceBookOpened) -> OpenedBook:
    try:
        return OpenedBook.of(event)
    except ValueError as error:
        raise SettingInvalid(f"the stream's price book {event.label!r} cannot be read: {error}") from error
