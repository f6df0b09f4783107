"""Fragmentation and placements, computed by hand from the definition in the paper."""

import random
from typing import Any

import pytest

from platform_assets.domain.errors import SpecError, UsageError
from platform_assets.domain.fragmentation import Demand, Workload, unusable, workload_of
from platform_assets.domain.gpu_placing import (
    POLICIES,
    Placement,
    Policy,
    Request,
    Reserve,
    Waits,
    never_fits,
)
from platform_assets.domain.gpu_pool import GpuNode, Pool
from platform_assets.domain.gpu_shapes import GpusSpec, Shape, shape_of
from platform_assets.domain.lanes import Lane
from platform_assets.domain.parse import parse_spec
from tests.test_domain_spec import flights

pytestmark = pytest.mark.embedded


def pool(*free: int, total: int = 8, model: str = "") -> Pool:
    return Pool([GpuNode(f"n{n}", model, total, one) for n, one in enumerate(free)])


def asks(*shapes: str, lane: Lane = Lane.ADHOC, model: str = "") -> Request:
    return Request("job", tuple(map(shape_of, shapes)), lane, model, only_model=bool(model))


def placed(policy: Policy, where: Pool, request: Request, daily: int = 0) -> Placement:
    found = policy.place(where, request, daily)
    assert isinstance(found, Placement), found
    return found


MIXED = Workload((Demand(1, 0.5), Demand(2, 0.3), Demand(4, 0.2)))


def test_what_a_type_cannot_use_of_a_node() -> None:
    """F_n(m): all that is free where m does not fit, nothing where it does."""
    assert unusable(3, "", Demand(4, 1.0)) == 3
    assert unusable(4, "", Demand(4, 1.0)) == 0
    assert unusable(6, "A", Demand(1, 1.0, "B")) == 6
    assert unusable(0, "A", Demand(1, 1.0)) == 0


def test_fragmentation_by_hand() -> None:
    """M: 1 GPU with p = 0.5, 2 with 0.3, 4 with 0.2.

    F(0) = 0
    F(1) = 0.3*1 + 0.2*1 = 0.5        (2 and 4 do not fit)
    F(2) = 0.2*2         = 0.4        (4 does not fit)
    F(3) = 0.2*3         = 0.6
    F(4) = 0
    A cluster with 1, 2, 3 and 8 free: 0.5 + 0.4 + 0.6 + 0 = 1.5.
    """
    assert [MIXED.fragmented(free) for free in range(5)] == pytest.approx([0, 0.5, 0.4, 0.6, 0])
    assert MIXED.of_pool(pool(1, 2, 3, 8)) == pytest.approx(1.5)


def test_the_gradient_by_hand() -> None:
    """A task of 1 GPU, M as above; the change of F by node:

    4 free: F(3) - F(4) = 0.6 - 0   = +0.6
    3 free: F(2) - F(3) = 0.4 - 0.6 = -0.2
    2 free: F(1) - F(2) = 0.5 - 0.4 = +0.1
    1 free: F(0) - F(1) = 0   - 0.5 = -0.5
    """
    found = [MIXED.increase(free, 1) for free in (4, 3, 2, 1)]
    assert found == pytest.approx([0.6, -0.2, 0.1, -0.5])


def requests(ones: int, twos: int, fours: int, model: str = "") -> list[Request]:
    sizes = {1: ones, 2: twos, 4: fours}
    return [asks(f"1x{gpus}", model=model) for gpus, n in sizes.items() for _ in range(n)]


def test_fgd_places_where_the_gradient_is_least() -> None:
    """Popularity 5 : 3 : 2, as above. One GPU with 4, 3 and 2 free on the nodes:

    FGD takes the node with 3 free (-0.2), although that with 2 free is filled better (+0.1).
    """
    fgd = Policy("fgd", requests(5, 3, 2))
    found = placed(fgd, pool(4, 3, 2), asks("1x1"))
    assert found.nodes == ("n1",)
    assert found.increase == pytest.approx(-0.2)
    assert placed(Policy("best-fit"), pool(4, 3, 2), asks("1x1")).nodes == ("n2",)
    assert placed(Policy("first-fit"), pool(4, 3, 2), asks("1x1")).nodes == ("n0",)


def test_fgd_leaves_a_model_to_those_who_need_it() -> None:
    """Half of the tasks need 4 GPUs of model A, half take 2 of any. 2 GPUs are placed.

    A, 8 free: F(8) = 0; F(6) = 0: +0
    A, 4 free: F(4) = 0; F(2) = 0.5*2 = 1: +1
    B, 8 free: F(8) = 0.5*8 = 4; F(6) = 0.5*6 = 3: -1, the least.
    """
    nodes = [GpuNode("a8", "A", 8, 8), GpuNode("a4", "A", 8, 4), GpuNode("b8", "B", 8, 8)]
    workload = [asks("1x4", model="A"), asks("1x2")]
    fgd = Policy("fgd", workload)
    changes = [fgd.workload.increase(node.free, 2, node.model) for node in nodes]
    assert changes == pytest.approx([0, 1, -1])
    assert placed(fgd, Pool(nodes), asks("1x2")).nodes == ("b8",)
    assert placed(Policy("best-fit"), Pool(nodes), asks("1x2")).nodes == ("a4",)


def test_a_gang_takes_the_least_nodes_all_or_none() -> None:
    """M as above, 2 nodes with 1 GPU each of 4, 3, 1, 2 free: -0.5 (1 free) and -0.2 (3 free)."""
    fgd = Policy("fgd", requests(5, 3, 2))
    found = placed(fgd, pool(4, 3, 1, 2), asks("2x1"))
    assert found.ranks == (2, 1)
    assert found.increase == pytest.approx(-0.7)
    assert isinstance(fgd.place(pool(4, 3), asks("2x4")), Waits)


def test_ours_chooses_the_shape_too() -> None:
    """8 GPUs as 1x8 or 2x4, and all jobs are like that: a node with 4 free is of use.

    With 4 and 4 free there is no 1x8, and FGD waits; with 8 free both fit and 1x8 is faster.
    """
    job = asks("1x8", "2x4")
    ours, fgd = Policy("ours", [job]), Policy("fgd", [job])
    assert isinstance(fgd.place(pool(4, 4), job), Waits)
    assert placed(ours, pool(4, 4), job).shape == Shape(2, 4)
    assert placed(ours, pool(4, 4, 8), job).shape == Shape(1, 8)


def test_ours_weighs_speed_against_fragmentation() -> None:
    """1x2 or 1x1, half as fast; all others take 8 on one node. Free are 8 and 1.

    1x2 on 8 free: F(6) - F(8) = 6 - 0 = +6, no speed is lost: costs 6.
    1x1 on 1 free: F(0) - F(1) = 0 - 1 = -1, half of 2 GPUs' speed: costs -1 + 1 = 0.
    """
    job = Request("job", (Shape(1, 2), Shape(1, 1)), speeds=(2.0, 1.0))
    ours = Policy("ours", [asks("1x8")])
    found = placed(ours, pool(8, 1), job)
    assert (found.shape, found.nodes) == (Shape(1, 1), ("n1",))
    assert ours.cost(job, found) == pytest.approx(0)


def test_the_reserve_is_not_eaten() -> None:
    ours = Policy("ours", [asks("1x2")], reserve=Reserve(Shape(1, 8)))
    backfill, daily = asks("1x2", lane=Lane.BACKFILL), asks("1x8", lane=Lane.DAILY)
    found = ours.place(pool(8, 1), backfill)
    assert isinstance(found, Waits)
    assert found.reserved
    assert found.reason == (
        "9 GPUs idle, at most 8 on any node; what would fit is kept for the daily lane (1x8)"
    )
    assert isinstance(Policy("ours", [asks("1x2")]).place(pool(8, 1), backfill), Placement)
    assert placed(ours, pool(8, 1), daily).nodes == ("n0",)
    assert placed(ours, pool(8, 8), backfill).nodes == ("n0",)
    # While the daily lane works with as many, nothing is kept for it.
    assert placed(ours, pool(8, 1), backfill, daily=8).nodes == ("n0",)


def test_a_gang_takes_of_the_reserve_only_what_is_spare() -> None:
    """Kept are 2 nodes with 4: of three such nodes a gang gets one, the other from elsewhere."""
    ours = Policy("ours", [asks("1x4")], reserve=Reserve(Shape(2, 4)))
    gang = asks("2x2", lane=Lane.BACKFILL)
    found = placed(ours, pool(4, 4, 4, 3), gang)
    assert sum(1 for rank in found.ranks if rank < 3) == 1
    assert isinstance(ours.place(pool(4, 4, 4, 1), gang), Waits)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_places_where_there_is_no_room(policy: str) -> None:
    """Random pools and jobs: what is placed fits, on different nodes; what waits does not fit."""
    chance = random.Random(policy)
    for _ in range(300):
        free = [chance.randrange(9) for _ in range(chance.randrange(6))]
        job = asks(f"{chance.randrange(1, 4)}x{chance.randrange(1, 9)}")
        where = pool(*free)
        found = Policy(policy, [job, asks("1x3")], seed=1).place(where, job)
        (shape,) = job.shapes
        if isinstance(found, Placement):
            assert len(set(found.ranks)) == shape.nodes
            assert all(free[rank] >= shape.gpus for rank in found.ranks)
            where.change(found.ranks, shape.gpus)
            assert where.free == sum(free) - shape.total
        else:
            assert sum(one >= shape.gpus for one in free) < shape.nodes


def test_equal_input_places_equally() -> None:
    for policy in POLICIES:
        runs = {
            tuple(
                placed(chosen, pool(8, 8, 8, 8), asks("2x2")).ranks
                for chosen in [Policy(policy, [asks("1x2")], seed=7)]
                for _ in range(3)
            )
            for _ in range(3)
        }
        assert len(runs) == 1
    ties = placed(Policy("fgd", [asks("1x2")]), pool(8, 8, 8), asks("1x2"))
    assert ties.nodes == ("n0",)


def test_what_never_fits_is_said() -> None:
    assert never_fits(pool(), asks("1x1")) == "there is no node with GPUs that may be used"
    assert never_fits(pool(0, 0), asks("1x8")) == ""
    assert "largest of 2 nodes has 8 GPUs" in never_fits(pool(8, 8), asks("1x16"))
    assert never_fits(pool(8, 8), asks("3x8")).startswith("there is no room for 3x8")
    assert never_fits(pool(8), asks("1x1", model="A")) == "no node has GPUs of model A"
    out = Pool([GpuNode("n0", "", 8, 8, out="it is cordoned")])
    assert never_fits(out, asks("1x1")) == "there is no node with GPUs that may be used"
    assert isinstance(Policy("ours").place(out, asks("1x1")), Waits)


def test_a_pool_gives_only_what_it_has() -> None:
    where = pool(2, 4)
    with pytest.raises(ValueError, match="n0 would have -1 GPUs free"):
        where.change([1, 0], 3)
    assert where.free == 6
    with pytest.raises(ValueError, match="n1 would have 9"):
        where.change([1], -5)
    with pytest.raises(UsageError, match="names of nodes must differ"):
        Pool([GpuNode("a", "", 8, 8), GpuNode("a", "", 8, 8)])
    with pytest.raises(UsageError, match="allowed are random, first-fit"):
        Policy("best")
    assert workload_of([]).demands == ()


# --- the catalog ----------------------------------------------------------------------------


def with_gpus(**gpus: object) -> dict[str, Any]:
    found = flights()
    found["model"] = {**found["model"], "gpus": gpus}
    return found


def test_the_shapes_of_a_model() -> None:
    spec = parse_spec(with_gpus(shapes=["1x8", "2x4", "1x4"], preferred="2x4"), "here")
    gpus = spec.model.gpus
    assert gpus is not None
    assert [str(shape) for shape in gpus.ordered()] == ["2x4", "1x8", "1x4"]
    assert gpus.speed(Shape(1, 2)) / gpus.speed(Shape(1, 1)) == pytest.approx(1.80, abs=0.01)
    plain = parse_spec(flights(), "here")
    assert plain.model.gpus is None
    assert plain.model.model_dump() == spec.model.model_dump()  # of no version


@pytest.mark.parametrize(
    ("gpus", "field", "words"),
    [
        ({}, "model.gpus.shapes", "is missing"),
        ({"shapes": []}, "model.gpus.shapes", "at least 1 item"),
        ({"shapes": ["8"]}, "model.gpus.shapes.0", "allowed is NODESxGPUS, as in 1x8"),
        ({"shapes": ["0x8"]}, "model.gpus.shapes.0", "found '0x8'"),
        ({"shapes": [8]}, "model.gpus.shapes.0", "found 8"),
        ({"shapes": ["1x8", "1x8"]}, "model.gpus", "shapes must differ"),
        ({"shapes": ["1x8"], "preferred": "2x4"}, "model.gpus", "preferred is '2x4'; allowed are"),
        (
            {"shapes": ["1x8", "1x2"], "minimum": "1x8"},
            "model.gpus",
            "minimum is 1x8 (8 GPUs), and 1x2 has fewer",
        ),
        ({"shapes": ["1x8"], "only_model": True}, "model.gpus", "no model is named"),
        ({"shapes": ["1x8"], "model": "a b"}, "model.gpus.model", "found 'a b'"),
        ({"shapes": ["1x8"], "scaling": 0}, "model.gpus.scaling", "found 0"),
        ({"shapes": ["1x8"], "gpu": 1}, "model.gpus.gpu", "is no field here; allowed are across"),
    ],
)
def test_wrong_shapes_are_refused(gpus: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec(with_gpus(**gpus), "here")
    assert words in refused.value.problems[field]


def test_defaults_of_the_spec() -> None:
    assert GpusSpec(shapes=("1x2",)).ordered() == (Shape(1, 2),)
