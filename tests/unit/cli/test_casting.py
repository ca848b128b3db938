from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.casting import Casting, parse_slo_mix
from services.twin.traces import TraceRequest

CLASSES = ("interactive", "standard", "batch")


def request(**fields):
    return TraceRequest(arrival_s=0.0, prompt_tokens=1, completion_tokens=1, **fields)


def casting(**changed):
    return Casting(
        **{"tenants": ("a", "b"), "slo_mix": {"interactive": 3.0, "batch": 1.0}, "workload": "w", "model": "m"}
        | changed
    )


@given(st.integers(0, 10_000), st.integers(0, 100))
def test_same_seed_and_place_cast_the_same(index, seed):
    assert casting(seed=seed).cast(request(), index) == casting(seed=seed).cast(request(), index)


def test_what_the_trace_says_is_kept():
    said = request(tenant="t", workload="x", slo_class="standard", model="n", prompt="hi")
    made = casting()
    arrival = made.cast(said, 0)
    assert (arrival.tenant, arrival.workload, arrival.slo_class, arrival.model) == ("t", "x", "standard", "n")
    assert made.synthesised == []


def test_what_was_made_up_is_told():
    made = casting()
    arrival = made.cast(request(), 0)
    assert (arrival.workload, arrival.model) == ("w", "m")
    assert made.synthesised == ["tenants", "SLO classes", "workloads", "prompts' words"]


def test_model_of_the_command_line_wins():
    assert casting(override_model="o").cast(request(model="n"), 0).model == "o"


def test_classes_come_by_their_weights_and_tenants_evenly():
    made = casting()
    arrivals = [made.cast(request(), index) for index in range(4000)]
    classes, tenants = Counter(each.slo_class for each in arrivals), Counter(each.tenant for each in arrivals)
    assert classes["interactive"] / 4000 == pytest.approx(0.75, abs=0.05)
    assert tenants["a"] / 4000 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("interactive=0.5,standard=0.3,batch=0.2", {"interactive": 0.5, "standard": 0.3, "batch": 0.2}),
        ("batch", {"batch": 1.0}),
        (" batch = 2 , standard=0", {"batch": 2.0, "standard": 0.0}),
    ],
)
def test_mix_is_read(text, mix):
    assert parse_slo_mix(text, CLASSES) == mix


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fast=1", "'fast' is not one of interactive, standard, batch"),
        ("batch=much", "the weight of batch is 'much'"),
        ("batch=-1", "the weight of batch is '-1'"),
        ("batch=inf", "the weight of batch is 'inf'"),
        ("batch=0", "every weight in 'batch=0' is 0"),
        ("", "'' is not one of"),
    ],
)
def test_bad_mix_is_named(text, says):
    with pytest.raises(ValueError, match=r"SLO class|weight") as caught:
        parse_slo_mix(text, CLASSES)
    assert says in str(caught.value)
