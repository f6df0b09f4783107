"""Which days are looked at, and for how long: so that a look's cost follows what is new."""

from platform_assets.domain.spec import PipelineSpec


def recent_days(spec: PipelineSpec) -> int:
    """How many of the last local days are looked at each time, whatever their state.

    A day stays in it until its sources may be late no more and its model's judgement is due.
    """
    lateness = max(source.contract.lateness_hours for source in spec.sources.values())
    return -(-lateness // 24) + spec.evaluation.days + 2


def portion(position: int, most: int, total: int) -> range:
    """The next places of a rotation over `total` places; empty only if there are none.

    Whoever goes on at `next_position` comes past every place exactly once a round: the last
    portion of a round is shorter instead of reaching into the next one.
    """
    start = position if 0 <= position < total else 0
    return range(start, min(start + max(1, most), total))


def next_position(done: int, total: int) -> int:
    """Where a rotation goes on that has come as far as `done`: at the beginning, after the end."""
    return done if done < total else 0
