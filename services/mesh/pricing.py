"""What tokens cost the tenant: router and meter price by the same function, so a stream's Finish and its bill agree.

In: the price book of the settings, and a request's model, tenant and SLO class. Out: the rates in force for it, and the
price of its tokens in nano-dollars. Pure.

A price is the sum of three parts (uncached input, cached input, output), each cumulative in its tokens (`money.py`):
what is booked for a step is the difference between the price after it and before it.
"""

from dataclasses import dataclass
from functools import lru_cache

from services.mesh.money import price_nusd, usd_to_nusd
from services.mesh.settings import Price, PriceBook


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


def _specificity(price: Price) -> tuple[int, bool, bool, bool]:
    """Order of precedence: how many fields are named; of as many, tenant before model before class."""
    named = (bool(price.tenant), bool(price.model), bool(price.slo_class))
    return (sum(named), *named)


@lru_cache(maxsize=4096)  # bounded: tenants and models come from outside
def rates_for(book: PriceBook, model: str, tenant: str, slo_class: str) -> Rates:
    """The rates of the most specific entry that matches; a book always has one that matches anything.

    An empty field of an entry matches any value. More named fields win; of as many, tenant wins over model over class.
    """
    price = max(
        (
            each
            for each in book.prices
            if each.model in ("", model) and each.tenant in ("", tenant) and each.slo_class in ("", slo_class)
        ),
        key=_specificity,
    )
    return Rates(
        input_nusd_per_mtok=usd_to_nusd(price.input_usd_per_mtok),
        cached_input_nusd_per_mtok=usd_to_nusd(price.cached_input_usd_per_mtok),
        output_nusd_per_mtok=usd_to_nusd(price.output_usd_per_mtok),
    )
