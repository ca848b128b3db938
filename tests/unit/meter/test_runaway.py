"""What runs away is found against its own history, and answered in grades."""

from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from services.mesh.events import RunawayGrade
from services.meter.core.amounts import Amounts
from services.meter.core.paces import LEAST_BUCKETS, Pace
from services.meter.core.runaway import Finding, Judge, Rules, Scope
from services.meter.core.usage import UsageKey

RULES: Final = Rules(
    most=RunawayGrade.STOP,
    bucket_s=10.0,
    ratio=5.0,
    least_tokens=1000.0,
    least_requests=10.0,
    least_nusd=1e6,
    agent_turns=5,
    agent_gap_s=15.0,
    cap_tokens=512,
)
CHAT: Final = Scope("acme", "workload", "chat")
AGENT: Final = Scope("acme", "session", "s-1")


class Clocked:
    """A judge, and the time it is told."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.judge = Judge(rules)
        self.now_s = 0.0
        self.judge.due(self.now_s)

    def bucket(self, tokens: int = 0, nusd: int = 0, workload: str = "chat") -> list[Finding]:
        """One bucket in which this was booked; what it led to."""
        if tokens or nusd:
            key = UsageKey(1, "acme", workload, "m", "a", "w", "p", "standard")
            self.judge.booked({key: Amounts(generated_tokens=tokens, price_nusd=nusd, finished_requests=10)})
        self.now_s += RULES.bucket_s
        return self.judge.due(self.now_s)

    def usual(self) -> None:
        for index in range(LEAST_BUCKETS):
            assert not self.bucket(tokens=2000 + 100 * (index % 3))

    def turn(self, prompt_tokens: int, after_s: float = 1.0) -> None:
        self.now_s += after_s
        self.judge.admitted("acme", "chat", "s-1", prompt_tokens, self.now_s)


def test_a_workload_at_many_times_its_usual_pace_is_found_with_the_numbers() -> None:
    watch = Clocked()
    watch.usual()
    (found,) = watch.bucket(tokens=40_000)
    assert (found.scope, found.kind, found.grade, found.unit) == (CHAT, "velocity", RunawayGrade.NOTIFY, "tokens")
    assert (found.observed, round(found.usual)) == (40_000, 2100)
    assert "40000 tokens in 10 s, usually 2100" in found.evidence


def test_it_goes_up_one_grade_at_a_time_while_it_goes_on_and_never_past_the_most() -> None:
    watch = Clocked(Rules(**{**{name: getattr(RULES, name) for name in RULES.__slots__}, "most": RunawayGrade.CAP}))
    watch.usual()
    grades = [each.grade for _ in range(40) for each in watch.bucket(tokens=400_000)]
    assert grades[:3] == [RunawayGrade.NOTIFY, RunawayGrade.SLOW, RunawayGrade.CAP]
    assert RunawayGrade.STOP not in grades


def test_a_stop_holds_longer_than_it_takes_to_calm_down_from_a_word() -> None:
    watch = Clocked()
    watch.usual()
    ran = [each.grade for _ in range(4 * RULES.escalate_buckets) for each in watch.bucket(tokens=10**7)]
    assert ran[-1] is RunawayGrade.STOP
    quiet = [watch.bucket(tokens=2000) for _ in range(RULES.stop_buckets)]
    assert [each.grade for found in quiet for each in found] == [RunawayGrade.NONE]
    assert quiet[-1]
    assert watch.judge.standing() == []


def test_a_lasting_change_becomes_usual_in_the_end() -> None:
    watch = Clocked()
    watch.usual()
    for _ in range(2000):
        watch.bucket(tokens=40_000)
    assert watch.judge.standing() == []


def test_what_is_small_is_never_found() -> None:
    watch = Clocked()
    for _ in range(LEAST_BUCKETS):
        watch.bucket(tokens=2)
    assert watch.bucket(tokens=999) == []


def test_money_that_goes_out_faster_than_usual_is_found_of_workload_and_tenant() -> None:
    watch = Clocked()
    for _ in range(LEAST_BUCKETS):
        watch.bucket(nusd=500_000)
    found = watch.bucket(nusd=50_000_000)
    assert {(each.scope, each.kind) for each in found} == {(CHAT, "spend"), (Scope("acme", "tenant"), "spend")}


def test_a_session_whose_answers_are_its_next_prompts_is_found_without_any_history() -> None:
    watch = Clocked()
    for turn in range(RULES.agent_turns):
        watch.turn(1000 + 200 * turn)
    (found,) = watch.bucket()
    assert (found.scope, found.kind, found.observed) == (AGENT, "endless_agent", RULES.agent_turns)
    assert "from 1000 to 1800 tokens" in found.evidence


def test_a_person_who_pauses_or_begins_anew_is_no_agent() -> None:
    paused, anew = Clocked(), Clocked()
    for turn in range(20):
        paused.turn(1000 + 200 * turn, after_s=RULES.agent_gap_s + 1.0)
        anew.turn(1000 + 200 * (turn % 4))
    assert paused.bucket() == anew.bucket() == []


def test_without_a_session_a_growing_conversation_is_found_and_the_same_prompt_again_is_none() -> None:
    grows, same = Clocked(), Clocked()
    for turn in range(3 * RULES.agent_turns):
        for watch, prompt_tokens in ((grows, 1000 + 50 * turn), (same, 1000)):
            watch.now_s += 0.1
            watch.judge.admitted("acme", "chat", "", prompt_tokens, watch.now_s, key="ci", conversation="~a.1")
    (found,) = grows.bucket()
    assert (found.scope, found.kind) == (Scope("acme", "session", "~a.1"), "endless_agent")
    assert same.bucket() == []


def test_without_sessions_a_key_at_many_times_its_pace_is_found_and_not_the_other() -> None:
    watch = Clocked()

    def ask(key: str, requests: int) -> None:
        for _ in range(requests):
            watch.judge.admitted("acme", "chat", "", 100, watch.now_s, key=key)

    for _ in range(LEAST_BUCKETS):
        ask("ci", 3)
        ask("app", 20)
        assert watch.bucket() == []
    ask("ci", 200)
    ask("app", 20)
    (found,) = watch.bucket()
    assert (found.scope, found.kind, found.unit) == (Scope("acme", "caller", "chat/ci"), "velocity", "requests")


def test_an_operator_lifts_what_is_in_force_and_its_pace_is_learned_anew() -> None:
    watch = Clocked()
    watch.usual()
    watch.bucket(tokens=40_000)
    assert watch.judge.lift(CHAT)
    assert [each.grade for each in watch.judge.due(watch.now_s)] == [RunawayGrade.NONE]
    assert not watch.judge.lift(CHAT)
    assert [watch.bucket(tokens=40_000) for _ in range(LEAST_BUCKETS)] == [[]] * LEAST_BUCKETS


@given(st.lists(st.floats(1, 1000), min_size=LEAST_BUCKETS, max_size=60))
def test_the_mean_and_spread_of_few_amounts_are_theirs(amounts: list[float]) -> None:
    pace = Pace()
    for amount in amounts:
        pace.learn(amount)
    mean = sum(amounts) / len(amounts)
    assert abs(pace.mean - mean) < 1e-6 * mean + 1e-9
    variance = sum((each - mean) ** 2 for each in amounts) / len(amounts)
    assert abs(pace.variance - variance) < 1e-6 * variance + 1e-6
