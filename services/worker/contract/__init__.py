"""What every engine promises a worker, as cases that anybody can run against an engine of their own.

    python -m services.worker.contract acme --settings '{"models": ["acme-7b"]}'

runs all of it against the engine that the entry point `acme` in the group `tokenworks.engines` makes (or one of ours,
by its name in `worker.engine`), with these `WorkerSettings`; what follows `--` goes to pytest. Settings that are not
given are small, so that limits are reached soon: a context of 512 tokens, 4 sequences at once.

In a test suite of your own, one class per way to make the engine does the same, and leaves room for cases beside it:

    from services.worker.contract.cases import EngineContract
    from services.worker.contract.subject import plugged_in

    class TestAcme(EngineContract):
        subject = plugged_in("acme", {"models": ["acme-7b"]})

`Subject` is what to make where an engine needs more than settings, such as a server that is started with it.

What an engine cannot do it says itself, in `EngineInfo.lacks`, as a `Capability` and why: the cases that need it are
skipped with that reason. What it does not say, it is held to. Two attributes are looked for beside `Engine`'s methods:

    tokenizer    a `services.worker.engines.prompts.Tokenizer`, which tells what a prompt's tokens are
    process_id   of a process of the engine's own, which is killed to see how it dies

Needs pytest and pytest-asyncio: `pip install 'tokenworks[contract]'`.
"""

try:
    import pytest
except ImportError as error:
    raise ImportError(f"the engines' contract needs pytest ({error}): pip install 'tokenworks[contract]'") from error

# Before their first import, so that a failing case shows its values.
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in (
    "ending", "failing", "features", "generation", "load", "resuming", "running",
)))  # fmt: skip
