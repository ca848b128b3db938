"""What the settings and the catalogue say that making tokens costs here."""

from services.mesh.accelerators import load_catalogue
from services.mesh.money import usd_to_nusd
from services.mesh.settings import Settings
from services.meter.core.costs import RateCard
from services.meter.core.credits import CreditTerms
from services.meter.core.fleet_rates import FleetRates


def rate_card(settings: Settings) -> RateCard:
    """The catalogue's rates, and the tariff of the settings."""
    return RateCard(
        {key: each.rate_nusd_per_hour for key, each in load_catalogue().accelerators.items()},
        usd_to_nusd(settings.energy.tariff_usd_per_kwh),
    )


def fleet_rates(settings: Settings) -> FleetRates:
    """What the fleet costs by date: the site's entries over the catalogue's."""
    return FleetRates(
        catalogue={key: each.rate_nusd_per_hour for key, each in load_catalogue().accelerators.items()},
        rates=settings.cost.rates,
        reservations=settings.cost.reservations,
        tariff_nusd_per_kwh=usd_to_nusd(settings.energy.tariff_usd_per_kwh),
        grid_g_per_kwh=settings.energy.grid_g_per_kwh,
        tariffs=settings.energy.tariffs,
    )


def credit_terms(settings: Settings) -> dict[str, CreditTerms]:
    """What each SLO class gives back for a miss."""
    return {
        name: CreditTerms(int(each.credit_percent * 10_000), usd_to_nusd(each.credit_usd))
        for name, each in settings.slo.classes.items()
    }
