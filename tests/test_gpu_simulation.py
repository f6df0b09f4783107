"""Traces: those checked by hand, made-up ones, and rubbish."""

import json
from pathlib import Path
from typing import Any

import pytest

from platform_assets.cli.app import main
from platform_assets.domain.errors import UsageError
from platform_assets.domain.gpu_placing import POLICIES, Reserve
from platform_assets.domain.gpu_shapes import Shape
from platform_assets.domain.gpu_simulation import Outcome, simulate
from platform_assets.domain.gpu_trace import generated, parse_trace, written
from platform_assets.domain.lanes import Lane

pytestmark = pytest.mark.embedded

HEAD = "kind,name,count,gpus,model,arrival,duration,shapes,lane\n"


def replay(text: str, policy: str = "first-fit", **more: Any) -> Outcome:
    return simulate(parse_trace(HEAD + text, "trace.csv"), policy, **more)


def starts(found: Outcome) -> dict[str, tuple[float, tuple[str, ...]]]:
    return {one.job.name: (one.at, one.placed.nodes) for one in found.started}


HAND = """\
node,n,2,4,,,,,
job,a,,3,,0,100,,
job,b,,3,,0,200,,
job,c,,2,,10,50,,
job,d,,1,,20,100,,
"""


def test_a_trace_by_hand() -> None:
    """Two nodes with 4 GPUs. a takes 3 of n-1 until 100, b 3 of n-2 until 200; c wants 2 and waits
    for a; d wants 1, and passes c: it takes the 4th of n-1 until 120. At 100 n-1 has 3 free, c
    starts and ends at 150.

    GPU-seconds: a 300, b 600, c 100, d 100, together 1,100 of 8 x 200: 0.6875.
    Waits: 0, 0, 90, 0; mean 22.5.
    """
    found = replay(HAND)
    assert starts(found) == {
        "a": (0, ("n-1",)),
        "b": (0, ("n-2",)),
        "d": (20, ("n-1",)),
        "c": (100, ("n-1",)),
    }
    assert found.mean() == pytest.approx(0.6875)
    assert found.most == pytest.approx(7 / 8)
    assert found.allocated == 0
    assert found.curve[-1] == (200, 0)
    document = found.document()
    assert document["wait_seconds"] == {"mean": 22.5, "median": 0, "p95": 90, "most": 90}
    assert document["placed"] == 4


def test_ours_takes_the_shape_that_leaves_now_by_hand() -> None:
    """As above, and c may take 1 GPU on each of 2 nodes: it starts at 10.

    2x1 is 0.9 times as fast as 1x2, so c ends at 10 + 50 / 0.9 = 65.6; d waits for it.
    """
    text = HAND.replace("job,c,,2,,10,50,,", "job,c,,2,,10,50,1x2 2x1,")
    found = replay(text, "ours")
    assert starts(found)["c"] == (10, ("n-1", "n-2"))
    ends = {one.job.name: one.ends for one in found.started}
    assert ends["c"] == pytest.approx(10 + 50 / 0.9)
    assert starts(found)["d"][0] == pytest.approx(10 + 50 / 0.9)
    assert starts(replay(text, "fgd"))["c"] == (100, ("n-1",))


def test_lanes_come_first_and_the_reserve_is_kept() -> None:
    """One node with 4; a backfill of 2 holds 2 until 100. Then a daily job of 4 comes at 50.

    Without the reserve a second backfill takes what is free at 10 until 110, the daily one starts
    at 110. With 1x4 kept no backfill starts at all while it would leave less than 4 free.
    """
    text = "node,n,,4,,,,,\njob,b1,,2,,0,100,,backfill\njob,b2,,2,,10,100,,backfill\n"
    text += "job,d,,4,,50,10,,daily\njob,b3,,2,,50,10,,backfill\n"
    assert starts(replay(text, "ours"))["d"][0] == 110
    kept = replay(text, "ours", reserve=Reserve(Shape(1, 4)))
    assert starts(kept)["d"][0] == 50
    # While the daily job works its reserve is in use; when it ends it is kept again.
    assert set(kept.waiting) == {"b1", "b2", "b3"}
    assert "kept for the daily lane (1x4)" in kept.idle_reason
    assert kept.waits(Lane.BACKFILL) == []


def test_the_case_of_three_spread_slots() -> None:
    """3 GPUs are free, one on each of 3 nodes: a job of 2 never starts, unless it may be 2x1."""
    text = "node,n,3,8,,,,,\njob,x,,7,,0,,,\njob,y,,7,,0,,,\njob,z,,7,,0,,,\n"
    for policy in POLICIES:
        stuck = replay(text + "job,two,,2,,10,,,\n", policy)
        assert stuck.waiting == ("two",)
        assert "3 GPUs idle, at most 1 on any node; asked for 2 together" in stuck.idle_reason
    assert replay(text + "job,two,,2,,10,,1x2 2x1,\n", "ours").waiting == ()


@pytest.mark.parametrize("policy", POLICIES)
def test_what_never_fits_holds_up_nobody(policy: str) -> None:
    text = "node,n,2,8,A,,,,\njob,big,,16,,0,10,,\njob,gang,,24,,0,10,3x8,\njob,b,,1,B,0,10,,\n"
    found = replay(text + "job,small,,1,,5,10,,\n", policy)
    assert set(found.never) == {"big", "gang", "b"}
    assert starts(found)["small"][0] == 5
    assert found.never["b"] == "no node has GPUs of model B"


def test_no_gpus_and_no_jobs() -> None:
    empty = replay("node,n,,8,,,,,\n")
    assert (empty.allocated, empty.mean(), empty.started) == (0, 0, ())
    assert empty.document()["wait_seconds"]["mean"] is None
    nothing = replay("node,n,,0,,,,,\njob,a,,1,,0,1,,\n")
    assert nothing.never == {"a": "no node has GPUs"}
    assert nothing.allocated == 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ends", [True, False])
def test_made_up_traces_keep_the_rules(policy: str, ends: bool) -> None:
    """At no time more than a node has, each job at most once, equal seeds equal outcomes."""
    trace = generated(3, nodes=12, flexible=True, ends=ends, jobs=150)
    found = simulate(trace, policy, seed=5)
    sizes = {node.name: node.total for node in trace.nodes}
    events = []
    for one in found.started:
        assert one.at >= one.job.arrival
        assert one.placed.shape in one.job.request.shapes
        assert len(set(one.placed.nodes)) == one.placed.shape.nodes
        for node in one.placed.nodes:
            events.append((one.at, 1, node, one.placed.shape.gpus))
            if one.ends is not None:
                events.append((one.ends, 0, node, -one.placed.shape.gpus))
    held = dict.fromkeys(sizes, 0)
    for _, _, node, gpus in sorted(events):
        held[node] += gpus
        assert 0 <= held[node] <= sizes[node]
    assert sum(held.values()) == found.curve[-1][1]
    everyone = [one.job.name for one in found.started] + [*found.waiting, *found.never]
    assert sorted(everyone) == sorted(job.name for job in trace.jobs)
    assert not ends or not found.waiting
    again = simulate(generated(3, nodes=12, flexible=True, ends=ends, jobs=150), policy, seed=5)
    assert again.document() == found.document()


def test_seeds_differ_and_a_trace_survives_its_csv() -> None:
    trace = generated(1, nodes=20, flexible=True, ends=True)
    assert parse_trace(written(trace), "t") == trace
    assert generated(2, nodes=20, flexible=True, ends=True) != trace
    assert (
        simulate(trace, "random", seed=1).document() != simulate(trace, "random", seed=2).document()
    )


def test_fixed_shapes_are_placed_as_fgd_does_and_several_ones_better() -> None:
    """The small sister of `python -m benchmarks.gpus`: 130 % demand, nobody leaves."""
    fixed, several = generated(0, nodes=40), generated(0, nodes=40, flexible=True)
    fgd = simulate(fixed, "fgd").allocated
    assert simulate(fixed, "ours").allocated == fgd
    assert simulate(several, "fgd").allocated == fgd
    assert simulate(several, "ours").allocated > fgd


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its first line is 'nothing'"),
        ("name,gpus\n", "allowed are the columns kind,name"),
        ("kind,gpus,kind\n", "each once"),
        ("kind,gpus,colour\nnode,8,red\n", "'kind,gpus,colour'"),
        (HEAD, "there is no line of kind node"),
        (HEAD + "pod,a,,8,,,,,\n", "line 2: kind is 'pod'; allowed are node and job"),
        (HEAD + "node,a,,eight,,,,,\n", "line 2: gpus is 'eight'; allowed is a whole number"),
        (HEAD + "node,a,,-1,,,,,\n", "line 2: gpus is -1; allowed are 0 to 1024"),
        (HEAD + "node,a,0,8,,,,,\n", "line 2: count is 0; allowed are 1 to 100000"),
        (HEAD + "node,a,,8,,5,,,\n", "line 2: a node has no arrival; leave it empty"),
        (HEAD + "node,a,,8\n", "line 2: it has fewer fields"),
        (HEAD + "node,a,,8,,,,,,,\n", "line 2: it has more fields"),
        (HEAD + "node,a,,8,,,,,\nnode,a,,8,,,,,\n", "line 3: there is a node 'a' already"),
        (HEAD + "node,a,,8,,,,,\njob,j,2,1,,0,1,,\n", "line 3: a job has no count"),
        (HEAD + "node,a,,8,,,,,\njob,j,,0,,0,1,,\n", "line 3: gpus is 0; allowed are 1"),
        (HEAD + "node,a,,8,,,,,\njob,j,,1,,-1,1,,\n", "line 3: arrival is '-1'"),
        (HEAD + "node,a,,8,,,,,\njob,j,,1,,0,nan,,\n", "line 3: duration is 'nan'"),
        (HEAD + "node,a,,8,,,,,\njob,j,,1,,0,soon,,\n", "line 3: duration is 'soon'"),
        (HEAD + "node,a,,8,,,,,\njob,j,,8,,0,1,1x4,\n", "gpus is 8 and the first shape 1x4 has 4"),
        (HEAD + "node,a,,8,,,,,\njob,j,,8,,0,1,8,\n", "'8' is no shape"),
        (HEAD + "node,a,,8,,,,,\njob,j,,8,,0,1,1x8 1x8,\n", "shapes must differ"),
        (HEAD + "node,a,,8,,,,,\njob,j,,8,,0,1,,nightly\n", "lane is 'nightly'; allowed are daily"),
        (HEAD + 'node,"a,,8,,,,,\n', "it is no CSV"),
    ],
)
def test_rubbish_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_trace(text, "trace.csv")
    assert words in str(refused.value)
    assert str(refused.value).startswith("trace.csv is refused")


def test_a_file_with_many_bad_lines_names_the_first_ones() -> None:
    text = HEAD + "node,a,,8,,,,,\n" + "job,,,x,,0,1,,\n" * 30
    with pytest.raises(UsageError, match=r"line 3: .*; and 20 lines more"):
        parse_trace(text, "trace.csv")


def typed(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, plots = tmp_path / "trace.csv", tmp_path / "plots"
    trace.write_text(HEAD + HAND)
    typed("gpu", "simulate", str(trace), "--json", "--plots", str(plots))
    document = json.loads(capsys.readouterr().out)
    assert list(document["policies"]) == list(POLICIES)
    assert document["policies"]["first-fit"]["wait_seconds"]["mean"] == 22.5
    for name in ("allocation.png", "queue.png"):
        assert (plots / name).read_bytes().startswith(b"\x89PNG")
    typed("gpu", "simulate", str(trace), "--policy", "fgd")
    assert "4 jobs, 8 GPUs, 2 nodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.csv"], "nowhere.csv cannot be read (No such file or directory)"),
        (["{}", "--policy", "worst"], "'worst' is no policy; allowed are random"),
        (["{}", "--reserve", "8"], "--reserve: '8' is no shape"),
        (["{}", "--seed", "-1"], "seed"),
        (["{bytes}"], "is no text in UTF-8"),
        (["{}", "--plots", "{}/x"], "cannot be written"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, rubbish = tmp_path / "trace.csv", tmp_path / "rubbish.csv"
    trace.write_text(HEAD + HAND)
    rubbish.write_bytes(b"\xff\xfe\x00kind")
    wrong = [a.replace("{bytes}", str(rubbish)).replace("{}", str(trace)) for a in arguments]
    with pytest.raises(SystemExit):
        main(["gpu", "simulate", *wrong])
    assert words in capsys.readouterr().err
