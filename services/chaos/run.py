"""One run: learn what undisturbed streams say, load the mesh, break it on schedule, mend it, check.

In: a ground that stands, its books, the plan of the run. Out: a `Report`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.chaos.audit import Audit
from services.chaos.beats import Beats
from services.chaos.core.faults import Fault, FaultKind, Role, Target
from services.chaos.core.schedule import chosen, in_turn, schedule
from services.chaos.core.verdict import Check
from services.chaos.ground import Books, Ground
from services.chaos.injector import Injector, NeverBack
from services.chaos.load import Load, questions
from services.chaos.report import Report
from services.mesh.clock import Clock
from services.mesh.settings import NatsSettings

_AFTER_S: Final = 1.0  # of load after the last fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run does.

    Attributes:
        faults: how many; of a kind that is done in turn, as many as there are targets.
        every_s: mean seconds between faults.
        only: see `chosen`; empty: everything.
        in_turn: this kind, to each target once, instead of a schedule drawn from the seed.
        streams: that run at once.
        tenant, capped: see `Load`.
        budget_requests: of the dearest kind, that the budget of `capped` pays for.
        command: that makes the run again.
    """

    seed: int
    faults: int
    every_s: float = 1.5
    streams: int = 16
    only: tuple[str, ...] = ()
    in_turn: FaultKind | None = None
    tenant: str = "local"
    capped: str = ""
    budget_requests: int = 8
    command: str = "tokenworks chaos"

    def schedule(self, targets: Sequence[Target]) -> tuple[Fault, ...]:
        """The faults of this plan. Raises ValueError: it asks for what cannot be broken here."""
        able = chosen(targets, self.only)
        if self.in_turn is not None:
            return in_turn(able, self.in_turn, self.every_s)
        return schedule(self.seed, able, self.faults, self.every_s)


async def run(
    ground: Ground,
    books: Books,
    plan: Plan,
    *,
    nats: NatsSettings,
    clock: Clock,
    say: Callable[[str], None],
) -> Report:
    """Breaks the mesh and checks it.

    Args:
        nats: how to talk to the ground's NATS; the URL is the ground's.
        say: called with words for a person as things happen.

    Raises:
        ValueError: the plan asks for what cannot be broken here.
        BusUnavailable, CallError: the mesh did not answer before anything was broken.
        GenerateError: it did not answer a question undisturbed.
    """
    began_s = clock.monotonic_s()
    faults = plan.schedule(ground.targets)
    broke_off = ""
    checks: list[Check] = []
    async with (
        Beats(nats, ground.nats, clock) as beats,
        Load(ground, questions(plan.seed), plan.tenant, plan.capped) as load,
    ):
        audit = Audit(ground, books, beats, clock)
        price_nusd = await load.learn()
        if plan.capped:
            before = await books.budget(plan.capped)
            await books.set_budget(plan.capped, before.spent_nusd + plan.budget_requests * price_nusd)
        held = await audit.before()
        say(f"{plan.streams} streams at a time; {len(faults)} faults, about one each {plan.every_s:g} s")

        def tell(fault: Fault) -> None:
            say(f"{fault.number}/{len(faults)} {fault.words}")

        injector = Injector(ground, beats, clock, tell)
        over = asyncio.Event()
        load_began_s = clock.monotonic_s()
        loading = asyncio.create_task(load.run(plan.streams, plan.seed, over), name="load")
        try:
            await injector.run(faults, load_began_s)
            await asyncio.sleep(_AFTER_S)
        except* NeverBack as lost:
            broke_off = "; ".join(str(each) for each in lost.exceptions)
        finally:
            over.set()
        await loading
        if not broke_off:
            say("everything is mended; checking")
            try:
                await injector.until_all_serve()
                checks = await audit.checks(load, held, plan.capped)
            except NeverBack as lost:
                broke_off = str(lost)
        return Report(
            seed=plan.seed,
            command=plan.command,
            planned=faults,
            done=injector.done,
            skipped=ground.skipped,
            outcomes=load.outcomes,
            checks=checks,
            duration_s=clock.monotonic_s() - began_s,
            load_began_s=load_began_s,
            workers=sum(target.role is Role.WORKER for target in ground.targets),
            broke_off=broke_off,
        )
