"""Turns of an agent that names no session are known by their prompts' beginnings; strangers are not taken for one."""

from random import Random

import pytest

from services.mesh.errors import RunawayStopped
from services.mesh.prefix_chain import chain_of_text
from services.router.core.conversations import Conversations
from services.router.core.request import Asked, PromptFacts, PromptKind
from tests.unit.router.test_admission import asked
from tests.unit.router.test_restraints import restrained

SYSTEM = "You are of help. " * 64


def _asks(prompt: str, key: str = "ci", workload: str = "support") -> Asked:
    chain = chain_of_text("acme", "m", prompt)
    facts = PromptFacts(kind=PromptKind.TEXT, size=len(prompt), chain=chain)
    return asked(prompt=facts, key=key, workload=workload)


def test_a_prompt_that_grows_by_its_answers_is_one_conversation_from_its_second_turn_on() -> None:
    known, random = Conversations(), Random(1)
    prompt, names = SYSTEM, []
    for _ in range(50):
        names.append(known.of(_asks(prompt)))
        prompt += "".join(random.choices("abcdefgh ", k=random.randrange(10, 3000)))
    assert names[0] == ""
    assert len(set(names[1:])) == 1
    assert names[1].startswith("~")
    assert len(known) == 1


def test_another_key_workload_or_beginning_is_another_conversation() -> None:
    known = Conversations()
    assert known.of(_asks(SYSTEM)) == ""
    assert known.of(_asks(SYSTEM + "x" * 300, key="app")) == ""
    assert known.of(_asks(SYSTEM + "x" * 300, workload="other")) == ""
    assert known.of(_asks("z" + SYSTEM + "x" * 300)) == ""
    assert known.of(_asks(SYSTEM + "x" * 300)) != ""


def test_two_agents_of_one_key_are_told_apart_once_their_prompts_differ() -> None:
    known = Conversations()
    first, second = SYSTEM + "a" * 600, SYSTEM + "b" * 600
    known.of(_asks(first))
    known.of(_asks(second))
    names = {known.of(_asks(first + "a" * 600)), known.of(_asks(second + "b" * 600))}
    assert len(names) == 2


def test_what_is_remembered_has_a_bound_and_short_prompts_are_nobodys() -> None:
    known = Conversations(most=10)
    for index in range(100):
        known.of(_asks(f"{index} " + SYSTEM))
    assert len(known) == 10
    assert known.of(_asks("hello")) == known.of(_asks("hello")) == ""


def test_a_conversation_and_a_caller_are_held_back_where_no_session_is_named() -> None:
    prompt = asked(session_id="", conversation="~a.1", key="ci")
    for changes in ({"scope": "session", "name": "~a.1"}, {"scope": "caller", "name": f"{prompt.workload}/ci"}):
        with pytest.raises(RunawayStopped):
            restrained(**changes).check(prompt, 1.0)
    restrained(scope="caller", name=f"{prompt.workload}/ci").check(asked(session_id="s-1", key="ci"), 1.0)
