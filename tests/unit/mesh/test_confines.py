import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.confines import ANYWHERE, Confines, ConfinesSettings, Site

_names = st.sampled_from(["a", "b", "c"])
_some = st.lists(_names, unique=True).map(lambda values: tuple(sorted(values)))
_confines = st.builds(Confines, _some, _some, _some)
_sites = st.builds(Site, _names, _names, _some)


@given(_confines)
def test_confines_come_back_from_their_text(confines: Confines) -> None:
    assert Confines.parse(str(confines)) == confines


@given(_confines, _confines, _sites)
def test_both_admit_what_each_admits(one: Confines, other: Confines, site: Site) -> None:
    both = one.both(other)
    assert both.admits(site) == (one.admits(site) and other.admits(site))
    assert Confines.parse(str(both)) == both


@given(_confines, _sites)
def test_what_is_missing_is_one_of_the_parts_or_nothing(confines: Confines, site: Site) -> None:
    assert confines.admits(site) == all(part.admits(site) for part in confines.parts())
    if missing := confines.missing(site):
        assert not Confines.parse(missing).admits(site)


def test_no_confines_admit_every_site() -> None:
    assert not ANYWHERE
    assert ANYWHERE.admits(Site())


@pytest.mark.parametrize("text", ["eu", "region=", "planet=earth", "region=a;region=b"])
def test_text_that_says_nothing_is_refused_and_told_what_would_do(text: str) -> None:
    with pytest.raises(ValueError, match="region=eu-1"):
        Confines.parse(text)


def test_settings_give_confines() -> None:
    assert ConfinesSettings(regions=("b", "a", "b")).confines == Confines(regions=("a", "b"))
