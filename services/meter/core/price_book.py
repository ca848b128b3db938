"""Which price book was in force for a request, and its rates by it. Pure; the arithmetic is `mesh/pricing.py`.

A request is priced by the book that its router named when it was admitted (`name@version`), also when its events come
after the book was replaced. A name that is not known here (a router with newer settings) is priced by the current book.
"""

from collections.abc import Iterable

from services.mesh.pricing import Rates, rates_for
from services.mesh.settings import PriceBook


class PriceBooks:
    """The current book and those that were in force before, by label."""

    def __init__(self, current: PriceBook, past: Iterable[PriceBook] = ()) -> None:
        self.current = current
        self._by_label = {book.label: book for book in (*past, current)}

    def knows(self, label: str) -> bool:
        return label in self._by_label

    def rates(self, label: str, *, model: str, tenant: str, slo_class: str) -> Rates:
        """Rates by the book called `label`; by the current one when it is empty or not known."""
        return rates_for(self._by_label.get(label, self.current), model, tenant, slo_class)
