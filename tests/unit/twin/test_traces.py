import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.twin.traces import BLOCK_TOKENS, TraceInvalid, TraceRequest, prompt_ids, read

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 18:15:46.6805900,374,44\r
2023-11-16 18:15:50.9951690,396,109\r
2023-11-16 18:15:51.2224670,879,55"""
MOONCAKE = """{"timestamp": 0, "input_length": 600, "output_length": 6, "hash_ids": [0, 1]}
{"timestamp": 277, "input_length": 700, "output_length": 92, "hash_ids": [0, 2]}
"""
OURS = """arrival_s,tenant,model,prompt_tokens,completion_tokens,prompt
0.5,acme,m,10,3,
0.75,globex,n,0,4,"one, two"
"""


def lines(text):
    return text.splitlines(keepends=True)


def request(prompt_tokens=10, **fields):
    return TraceRequest(arrival_s=0.0, prompt_tokens=prompt_tokens, completion_tokens=1, **fields)


def test_azure_rows_become_arrivals_from_zero():
    first, second, third = read(lines(AZURE))
    assert (first.arrival_s, first.prompt_tokens, first.completion_tokens) == (0.0, 374, 44)
    assert second.arrival_s == pytest.approx(4.314579, abs=1e-6)
    assert (third.prompt_tokens, third.completion_tokens, third.tenant) == (879, 55, "")


def test_azure_of_2024_with_time_zones_is_read():
    rows = ("2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 00:00:01+00:00,1,1")
    text = "\n".join(("TIMESTAMP,ContextTokens,GeneratedTokens", *rows))
    assert [each.arrival_s for each in read(lines(text))] == [0.0, pytest.approx(0.99007)]


def test_mooncake_rows_keep_their_blocks_and_are_in_milliseconds():
    first, second = read(lines(MOONCAKE))
    assert (first.blocks, first.prompt_tokens) == ((0, 1), 600)
    assert (second.arrival_s, second.completion_tokens) == (0.277, 92)


def test_our_own_rows_say_tenant_model_and_words():
    first, second = read(lines(OURS))
    assert (first.arrival_s, first.tenant, first.model, first.prompt) == (0.0, "acme", "m", "")
    assert (second.arrival_s, second.prompt, second.prompt_tokens) == (0.25, "one, two", 0)


def test_byte_order_mark_and_blank_lines_do_not_matter():
    assert len(list(read(["\ufeff" + AZURE.splitlines()[0], "", *lines(AZURE)[1:], "\n"]))) == 3


def test_reading_is_lazy():
    def endless():
        yield "arrival_s,prompt_tokens,completion_tokens"
        second = 0
        while True:
            yield f"{second},1,1"
            second += 1

    requests = read(endless())
    assert [next(requests).arrival_s for _ in range(3)] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "t line 1: '' starts no known trace"),
        ("a,b,c\n1,2,3", "expected the header 'TIMESTAMP,ContextTokens,GeneratedTokens'"),
        ("arrival_s,prompt_tokens,completion_tokens,colour\n", "starts no known trace"),
        (AZURE.replace("396", "x"), "t line 3: ContextTokens 'x' is not a whole number of at least 1"),
        (AZURE.replace(",44", ",0"), "t line 2: GeneratedTokens '0' is not a whole number of at least 1"),
        (AZURE.replace("2023-11-16 18:15:51", "yesterday"), "t line 4: TIMESTAMP 'yesterday.2224670' is not a time"),
        (AZURE.replace("18:15:51", "18:15:49"), "t line 4: it arrives 1.77"),
        (AZURE + "\n2023-11-16 18:15:52,1", "t line 5: '2023-11-16 18:15:52,1' has 2 columns; 3 are needed"),
        (MOONCAKE.replace(', "output_length": 92', ""), "t line 2: output_length is missing"),
        (MOONCAKE + "{", "t line 3: it is not JSON"),
        (MOONCAKE + "[]", "t line 3: '[]' is not a JSON object"),
        (MOONCAKE.replace("[0, 2]", "7"), "t line 2: hash_ids 7 is not a list of whole numbers"),
        (MOONCAKE.replace("700", "5"), "hash_ids has 2 blocks of 512 tokens; input_length 5 fills 1"),
        (MOONCAKE.replace("700", "7.5"), "input_length '7.5' is not a whole number"),
        (MOONCAKE.replace("277", "-1"), "timestamp '-1' is not a time of at least 0"),
        (OURS.replace("0.75", "nan"), "t line 3: arrival_s 'nan' is not a time"),
        (OURS.replace("acme,", ""), "t line 2: '0.5,m,10,3,' has 5 columns; the header names 6"),
        (OURS.replace("m,10", "m,0"), "prompt_tokens '0' is not a whole number of at least 1"),
    ],
)
def test_bad_line_is_named_with_what_would_do(text, says):
    with pytest.raises(TraceInvalid) as caught:
        list(read(lines(text), "t"))
    assert says in str(caught.value)


@given(st.text(max_size=200))
def test_whatever_the_text_only_trace_invalid_is_raised(text):
    for header in ("", AZURE.splitlines()[0] + "\n", "arrival_s,prompt_tokens,completion_tokens\n", "{"):
        try:
            for each in read(lines(header + text)):
                assert each.arrival_s >= 0
        except TraceInvalid:
            pass


@given(st.integers(1, 3000), st.integers(0, 100), st.integers(0, 10))
def test_prompts_have_their_length_and_stay_inside_the_vocabulary(count, index, seed):
    ids = prompt_ids(request(count), index, seed)
    assert len(ids) == count
    assert all(256 <= each < 33_024 for each in ids)
    assert ids == prompt_ids(request(count), index, seed)


def test_unrelated_prompts_share_no_beginning():
    beginnings = {tuple(prompt_ids(request(8), index, seed)) for index in range(20) for seed in range(5)}
    assert len(beginnings) == 100


def test_equal_blocks_are_equal_tokens_and_other_blocks_differ():
    one = prompt_ids(request(1500, blocks=(7, 8, 9)), 0, 1)
    other = prompt_ids(request(1100, blocks=(7, 8, 10)), 1, 1)
    assert one[: 2 * BLOCK_TOKENS] == other[: 2 * BLOCK_TOKENS]
    assert one[2 * BLOCK_TOKENS : 1100] != other[2 * BLOCK_TOKENS :]
    assert len(one) == 1500


def test_tokens_beyond_the_blocks_are_the_requests_own():
    one, other = (prompt_ids(request(700, blocks=(7,)), index, 1) for index in (0, 1))
    assert one[:BLOCK_TOKENS] == other[:BLOCK_TOKENS]
    assert one[BLOCK_TOKENS:] != other[BLOCK_TOKENS:]


@given(st.integers(1, 400), st.integers(1, 400))
def test_later_turns_of_a_session_start_with_the_earlier_ones(first, second):
    one, other = (prompt_ids(request(count, session_id="s"), 0, 1) for count in (first, second))
    shared = min(first, second)
    assert one[:shared] == other[:shared]
