import io
from collections import Counter
from pathlib import Path

from services.cli import demo_trace
from services.cli.demo import demo_requests


def test_bundled_file_is_what_the_generator_makes():
    made = io.StringIO()
    demo_trace.write(made)
    assert (Path(demo_trace.__file__).parent / "demo_trace.csv").read_text(encoding="utf-8") == made.getvalue()


def test_bundled_trace_is_short_mixed_and_partly_real_words():
    requests = demo_requests()
    assert 100 <= len(requests) <= 200
    assert requests[-1].arrival_s <= 12
    assert {each.tenant for each in requests} == set(demo_trace.TENANTS)
    assert {each.slo_class for each in requests} == {"interactive", "standard", "batch"}
    assert len({each.workload for each in requests}) >= 4
    models = Counter(each.model for each in requests)
    assert 0.05 <= models[demo_trace.REAL_MODEL] / len(requests) <= 0.12
    assert all(bool(each.prompt) == (each.model == demo_trace.REAL_MODEL) for each in requests)


def test_turns_of_a_conversation_grow():
    by_session = {}
    for each in demo_requests():
        if each.session_id:
            assert each.prompt_tokens > by_session.get(each.session_id, 0)
            by_session[each.session_id] = each.prompt_tokens
    assert len(by_session) > 10
