"""What the settings and the catalogue say that making tokens costs here."""

from services.mesh.accelerators import load_catalogue
from services.mesh.money import usd_to_nusd
from services.mesh.settings import Settings
from services.meter.core.costs import RateCard


def rate_card(settings: Settings) -> RateCard:
    """The catalogue's rates, and the tariff of the settings."""
    return RateCard(
        {key: each.rate_nusd_per_hour for key, each in load_catalogue().accelerators.items()},
        usd_to_nusd(settings.energy.tariff_usd_per_kwh),
    )
