"""What a plan has taken from a pool, by the plans before it."""

from tests.unit.router.worlds import H100, L4, MI300X, MODEL, World


def left(world: World) -> frozenset[tuple[int, str]]:
    return world.fleet.plans[MODEL].left


def test_a_pool_without_a_share_is_left_once_it_had_one() -> None:
    world = World()
    world.plan(version=1, shares={H100: 1.0})
    assert left(world) == frozenset(), "who had none before leaves nothing"
    world.plan(version=2, shares={H100: 0.4, MI300X: 0.6})
    assert left(world) == frozenset()
    world.plan(version=3, shares={MI300X: 1.0})
    assert left(world) == {(0, H100)}
    world.plan(version=4, shares={L4: 1.0})
    assert left(world) == {(0, H100), (0, MI300X)}, "what was left stays so"
    world.plan(version=5, shares={H100: 0.5, L4: 0.5})
    assert left(world) == {(0, MI300X)}, "until it has work again"


def test_where_no_pool_has_work_of_a_class_none_is_left() -> None:
    world = World()
    world.plan(version=1, shares={H100: 1.0})
    world.plan(version=2, shares={})
    assert left(world) == frozenset()


def test_advice_and_a_trial_leave_no_pool() -> None:
    world = World()
    world.plan(version=1, shares={H100: 1.0})
    world.plan(version=2, shares={MI300X: 1.0}, advisory=True)
    world.plan(version=3, shares={MI300X: 1.0}, canary_share=0.1)
    assert left(world) == frozenset()
