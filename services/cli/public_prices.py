"""Public prices of models as a price book: the only file that imports genai-prices, which keeps them up to date.

In: a provider, or none for all. Out: a book with one entry per model, and where the prices are from. Only text tokens
count; of models that are dearer for long prompts, the price of short ones.
"""

from datetime import datetime
from decimal import Decimal
from importlib.metadata import version as version_of
from typing import Final

from services.cli.output import CommandFailed
from services.mesh.price_book import Price, PriceBook

_NANO: Final = Decimal("1e-9")


def public_prices(provider: str, name: str, version: int, now: datetime) -> tuple[PriceBook, str]:
    """The book and its source in words.

    Raises:
        CommandFailed: the package is not installed, or knows no such provider.
    """
    try:
        from genai_prices.data import providers
    except ImportError as error:
        raise CommandFailed(
            "public prices come with the package genai-prices: pip install 'tokenworks[prices]'",
            reason="PackageMissing",
        ) from error
    known = {each.id: each for each in providers}
    if provider and provider not in known:
        raise CommandFailed(f"no provider is called {provider!r}; known are: {', '.join(sorted(known))}")
    prices: dict[str, Price] = {}
    for each in [known[provider]] if provider else list(known.values()):
        for model in each.models:
            found = model.get_prices(now)
            rates = [_usd(getattr(found, f"{kind}_mtok", None)) for kind in ("input", "cache_read", "output")]
            plain, cached, output = rates
            if plain is None or output is None:
                continue
            key = model.id if provider else f"{each.id}/{model.id}"
            prices[key] = Price(
                model=key,
                input_usd_per_mtok=plain,
                cached_input_usd_per_mtok=plain if cached is None else cached,
                output_usd_per_mtok=output,
            )
    if not prices:
        raise CommandFailed(f"provider {provider!r} has no model that is priced by text tokens")
    rest = PriceBook().prices[0]
    told = f"public prices by genai-prices {version_of('genai-prices')}; what no entry names costs as in our own list"
    return PriceBook(name=name, version=version, prices=(rest, *prices.values())), told


def _usd(price: object) -> Decimal | None:
    """Dollars per million tokens; of tiers, the first."""
    base = getattr(price, "base", price)
    return None if base is None else Decimal(str(base)).quantize(_NANO)
