import dataclasses
import hmac

import jwt
import pytest

from services.mesh.errors import PlacementRefused, SettingInvalid
from services.mesh.placement import PlacementClaims, PlacementSigner, PlacementVerifier
from services.mesh.pricing import Rates

NOW_UNIX_MS = 1_700_000_000_000
CLAIMS = PlacementClaims(
    id="p-1",
    request_id="r-1",
    router="router-0",
    worker="w-1",
    epoch="e-1",
    tenant="acme",
    model="llama-3.1-8b",
    slo_class="standard",
    workload="support",
    plan="llama-3.1-8b:7",
    price_book="list@1",
    rates=Rates(50_000_000, 25_000_000, 100_000_000),
    admitted_unix_ms=NOW_UNIX_MS,
    resume_from=0,
    ttft_promise_s=2.0,
    ttft_promise_s_per_prompt_token=0.001,
    tpot_promise_s=0.1,
    priority=1,
    funded_tokens=256,
    prompt_tokens=900,
    expires_unix_ms=NOW_UNIX_MS + 10_000,
    deadline_unix_ms=NOW_UNIX_MS + 60_000,
    waited_s=0.25,
)


def test_a_genuine_placement_gives_back_its_claims() -> None:
    token = PlacementSigner(["s1"]).sign(CLAIMS)
    assert PlacementVerifier("w-1", "e-1", ["s1"]).verify(token, NOW_UNIX_MS) == CLAIMS


def test_what_bounds_no_stream_is_not_written() -> None:
    endless = dataclasses.replace(CLAIMS, deadline_unix_ms=0)
    token = PlacementSigner(["s1"]).sign(endless)
    assert "until" not in jwt.decode(token, options={"verify_signature": False})
    assert PlacementVerifier("w-1", "e-1", ["s1"]).verify(token, NOW_UNIX_MS) == endless
    assert endless.time_left_s(NOW_UNIX_MS) is None
    assert CLAIMS.time_left_s(NOW_UNIX_MS) == 62.0  # with the leeway that two clocks need


def test_a_placement_is_used_once() -> None:
    token, verifier = PlacementSigner(["s1"]).sign(CLAIMS), PlacementVerifier("w-1", "e-1", ["s1"])
    verifier.verify(token, NOW_UNIX_MS)
    with pytest.raises(PlacementRefused, match="used already"):
        verifier.verify(token, NOW_UNIX_MS + 1)


def test_an_expired_placement_is_refused_even_after_it_was_forgotten() -> None:
    token, verifier = PlacementSigner(["s1"]).sign(CLAIMS), PlacementVerifier("w-1", "e-1", ["s1"])
    verifier.verify(token, NOW_UNIX_MS)
    with pytest.raises(PlacementRefused, match="expired"):
        verifier.verify(token, NOW_UNIX_MS + 60_000)


def test_a_placement_for_another_worker_is_refused() -> None:
    with pytest.raises(PlacementRefused, match="is for worker 'w-1'"):
        PlacementVerifier("w-2", "e-1", ["s1"]).verify(PlacementSigner(["s1"]).sign(CLAIMS), NOW_UNIX_MS)


def test_a_placement_of_an_earlier_start_of_the_worker_is_refused() -> None:
    token = PlacementSigner(["s1"]).sign(CLAIMS)
    PlacementVerifier("w-1", "e-1", ["s1"]).verify(token, NOW_UNIX_MS)
    with pytest.raises(PlacementRefused, match="has started anew"):
        PlacementVerifier("w-1", "e-2", ["s1"]).verify(token, NOW_UNIX_MS)


def test_a_request_that_is_placed_again_may_come_to_the_same_worker() -> None:
    signer, verifier = PlacementSigner(["s1"]), PlacementVerifier("w-1", "e-1", ["s1"])
    again = dataclasses.replace(CLAIMS, id="p-2", resume_from=7)
    assert [verifier.verify(signer.sign(each), NOW_UNIX_MS).resume_from for each in (CLAIMS, again)] == [0, 7]


def test_a_forged_or_garbled_placement_is_refused() -> None:
    verifier = PlacementVerifier("w-1", "e-1", ["s1"])
    genuine = PlacementSigner(["s1"]).sign(CLAIMS)
    header, _, signature = genuine.split(".")
    _, payload, _ = PlacementSigner(["s1"]).sign(dataclasses.replace(CLAIMS, funded_tokens=10**6)).split(".")
    unsigned = jwt.encode(
        {"jti": "r"}, None, algorithm="none", headers={"kid": jwt.get_unverified_header(genuine)["kid"]}
    )
    cut = genuine[:-1]
    for token in (
        cut,
        genuine + "=",
        f"{genuine}.",
        f".{genuine}",
        f"{genuine}\u00e9",
        PlacementSigner(["s2"]).sign(CLAIMS),
        f"{header}.{payload}.{signature}",
        unsigned,
        "",
        "a.b.c",
        "é",
    ):
        with pytest.raises(PlacementRefused):
            verifier.verify(token, NOW_UNIX_MS)


def test_a_placement_written_by_another_jwt_library_is_read_alike() -> None:
    genuine = PlacementSigner(["s1"]).sign(CLAIMS)
    claims = jwt.decode(genuine, options={"verify_signature": False})
    key = hmac.digest(b"s1", b"tokenworks placement v1", "sha256")
    other = jwt.encode(claims, key, algorithm="HS256", headers={**jwt.get_unverified_header(genuine), "cty": "x"})
    assert other.split(".")[0] != genuine.split(".")[0]
    assert PlacementVerifier("w-1", "e-1", ["s1"]).verify(other, NOW_UNIX_MS) == CLAIMS


def test_a_rotated_secret_is_accepted_until_it_is_dropped() -> None:
    token = PlacementSigner(["old"]).sign(CLAIMS)
    assert PlacementVerifier("w-1", "e-1", ["new", "old"]).verify(token, NOW_UNIX_MS) == CLAIMS
    with pytest.raises(PlacementRefused, match="does not know"):
        PlacementVerifier("w-1", "e-1", ["new"]).verify(token, NOW_UNIX_MS)


def test_a_full_memory_refuses_rather_than_forgets() -> None:
    signer, verifier = PlacementSigner(["s"]), PlacementVerifier("w-1", "e-1", ["s"], remembered=1)
    verifier.verify(signer.sign(CLAIMS), NOW_UNIX_MS)
    other = signer.sign(dataclasses.replace(CLAIMS, id="p-2"))
    with pytest.raises(PlacementRefused, match="as many placements as it can"):
        verifier.verify(other, NOW_UNIX_MS)
    late = NOW_UNIX_MS + 20_000
    fresh = signer.sign(dataclasses.replace(CLAIMS, id="p-3", expires_unix_ms=late + 1000))
    assert verifier.verify(fresh, late).id == "p-3"


def test_without_a_secret_nothing_is_signed_or_accepted() -> None:
    with pytest.raises(SettingInvalid, match=r"mesh\.secret"):
        PlacementSigner([""])
    with pytest.raises(PlacementRefused, match=r"mesh\.secret"):
        PlacementVerifier("w-1", "e-1", []).verify(PlacementSigner(["s"]).sign(CLAIMS), NOW_UNIX_MS)


def test_a_signer_that_has_begun_many_tokens_signs_each_for_what_it_says() -> None:
    signer, verifier = PlacementSigner(["s1"]), PlacementVerifier("w-1", "e-1", ["s1"])
    for number in range(12):
        claims = dataclasses.replace(
            CLAIMS, id=f"p-{number}", plan="m:" + "1" * (number % 4), workload='a"\\\n\0é漢😀' * (number % 2)
        )
        assert verifier.verify(signer.sign(claims), NOW_UNIX_MS) == claims
