"""What tokens cost the tenant: router and meter price by the same function, so a stream's Finish and its bill agree.

In: a price book, and a request's model, tenant and SLO class. Out: the rates in force for it, and the price of its
tokens in nano-dollars. Pure.

A price is the sum of three parts (uncached input, cached input, output), each cumulative in its tokens (`money.py`):
what is booked for a step is the difference between the price after it and before it.
"""

from dataclasses import dataclass
from typing import Final

from services.mesh.money import price_nusd, usd_to_nusd
from services.mesh.price_book import PriceBook

_KEPT: Final = 4096  # bounded: tenants and models come from outside


@dataclass(frozen=True, slots=True)
class Rates:
    """Nano-dollars per million tokens, by kind of token."""

    input_nusd_per_mtok: int
    cached_input_nusd_per_mtok: int
    output_nusd_per_mtok: int

    def price_nusd(self, prompt_tokens: int, cached_prompt_tokens: int, completion_tokens: int) -> int:
        """What the tenant pays for one request.

        Args:
            prompt_tokens: all input tokens, the cached ones included.
            cached_prompt_tokens: those of them found in a prefix cache, 0 to `prompt_tokens`.
            completion_tokens: output tokens delivered.
        """
        assert 0 <= cached_prompt_tokens <= prompt_tokens, (cached_prompt_tokens, prompt_tokens)
        return (
            price_nusd(prompt_tokens - cached_prompt_tokens, self.input_nusd_per_mtok)
            + price_nusd(cached_prompt_tokens, self.cached_input_nusd_per_mtok)
            + price_nusd(completion_tokens, self.output_nusd_per_mtok)
        )


class Pricing:
    """A price book with its rates at hand."""

    def __init__(self, book: PriceBook) -> None:
        self.book = book
        self.label = book.label
        self._rates: dict[tuple[str, str, str], Rates] = {}

    def rates(self, model: str, tenant: str, slo_class: str) -> Rates:
        """The rates of the entry that prices such a request, of its first tier."""
        key = (model, tenant, slo_class)
        found = self._rates.get(key)
        if found is None:
            price = self.book.find(model, tenant, slo_class)
            found = Rates(
                input_nusd_per_mtok=usd_to_nusd(price.input_usd_per_mtok),
                cached_input_nusd_per_mtok=usd_to_nusd(price.cached_input_usd_per_mtok),
                output_nusd_per_mtok=usd_to_nusd(price.output_usd_per_mtok),
            )
            if len(self._rates) >= _KEPT:
                self._rates.clear()
            self._rates[key] = found
        return found
