"""Where the file of an hour lies: `<source>/<key>/2013-01-01/2013-01-01T10Z.parquet`, in UTC."""

from datetime import UTC, date, datetime
from pathlib import PurePosixPath

from platform_assets.domain.errors import UsageError

_HOURS = {f"T{hour:02d}Z.parquet": hour for hour in range(24)}


def hour_path(source: str, key: str, hour: datetime) -> PurePosixPath:
    """Where the file of an hour belongs, relative to `<landing>/<pipeline>`.

    Raises:
        UsageError: the instant has no timezone, or is no whole hour in UTC.
    """
    if hour.tzinfo is None:
        raise UsageError(
            f"hour {hour.isoformat()} has no timezone; give an aware datetime, since the files "
            "are named in UTC"
        )
    moment = hour.astimezone(UTC)
    if moment.minute or moment.second or moment.microsecond:
        raise UsageError(
            f"{hour.isoformat()} is no whole hour in UTC; the file of an hour is named by its "
            "start, such as 2013-01-01T10Z"
        )
    day = moment.date().isoformat()
    return PurePosixPath(source, key, day, f"{day}T{moment.hour:02d}Z.parquet")


def hour_of(name: str, folder: date) -> datetime | None:
    """The hour that a file name stands for; None if it is malformed or in another day's folder."""
    # Done for each file that is new: a pattern takes several times as long.
    hour = _HOURS.get(name[10:])
    if hour is None or name[:10] != folder.isoformat():
        return None
    return datetime(folder.year, folder.month, folder.day, hour, tzinfo=UTC)
