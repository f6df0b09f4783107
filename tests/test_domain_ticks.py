"""When backfills are evaluated: at news that can lead to something."""

from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.ticks import FEW_QUEUED, IDLE_SECONDS, Progress, is_due


def progress(*runs: str, queued: int = 0, status: str = "REQUESTED") -> Progress:
    return Progress(status=status, queued=queued, unfinished=frozenset(runs))


def test_a_new_backfill_is_evaluated_at_once() -> None:
    assert is_due({}, {"b": progress()}, 0.0) == "backfill b is new"


def test_without_a_backfill_there_is_nothing_to_do() -> None:
    assert is_due({"b": progress()}, {}, 1e6) is None


def test_a_cancelled_backfill_is_evaluated_at_once() -> None:
    before, now = {"b": progress("r")}, {"b": progress("r", status="CANCELING")}
    assert is_due(before, now, 0.0) == "backfill b is CANCELING"


def test_an_ended_run_is_news_unless_many_others_wait_for_a_slot() -> None:
    before = {"b": progress("r", "s")}
    assert is_due(before, {"b": progress("s", queued=FEW_QUEUED)}, 0.0)
    assert is_due(before, {"b": progress("s", queued=FEW_QUEUED + 1)}, 0.0) is None


def test_without_a_run_that_goes_on_there_is_nothing_to_wait_for() -> None:
    assert is_due({"b": progress()}, {"b": progress()}, 0.0)


def test_without_news_nothing_is_evaluated_until_dagsters_own_time_has_passed() -> None:
    same = {"b": progress("r")}
    assert is_due(same, same, IDLE_SECONDS - 0.1) is None
    assert is_due(same, same, IDLE_SECONDS) == "30 s have passed"


states = st.dictionaries(
    st.sampled_from("abc"),
    st.builds(
        Progress,
        status=st.sampled_from(["REQUESTED", "CANCELING"]),
        queued=st.integers(0, 5),
        unfinished=st.frozensets(st.sampled_from("rst")),
    ),
)


@given(states, states)
def test_no_backfill_waits_longer_than_with_dagsters_own_tick(
    before: dict[str, Progress], now: dict[str, Progress]
) -> None:
    assert (is_due(before, now, IDLE_SECONDS) is not None) == bool(now)
