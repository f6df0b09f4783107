"""Self-contained HTML pages: rendered with everything escaped, written whole or not at all."""

from pathlib import Path
from typing import Any

from platform_assets.domain.errors import HomeError, TransientError, UsageError
from resources.landing.atomic import write_whole

__all__ = ["check_page", "render", "write_page"]

_TEMPLATES = Path(__file__).parent / "templates"
_ENDINGS = (".html", ".htm")


def render(template: str, **values: Any) -> str:
    """A page from one of the templates beside this module; every value is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from resources.heat_colours import COLOURS, colour_of, ink_on, mark_of

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "colours": COLOURS,
        "colour_of": colour_of,
        "ink_on": ink_on,
        "mark_of": mark_of,
    }
    return environment.get_template(template).render(**values)


def check_page(path: Path) -> None:
    """Refuse a place where no page should be written; to be called before the work for it.

    Raises:
        UsageError: it does not end as a page does, is something else than a file, or its folder
            does not exist.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(
            f"--html {path}: the page is a file that ends in {' or '.join(_ENDINGS)}, so that "
            "nothing else is overwritten; name one"
        )
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = (
            "a symbolic link" if path.is_symlink() else "a folder" if path.is_dir() else "no file"
        )
        raise UsageError(
            f"--html {path} is {kind}; a page may replace a file alone, name another place"
        )
    if not path.parent.is_dir():
        raise UsageError(f"--html {path}: there is no folder {path.parent}; make it first")


def write_page(path: Path, text: str) -> None:
    """Put a page in place in one step; a reader sees the old one or the new one.

    Raises:
        UsageError: see `check_page`.
        TransientError: the disk is full; nothing was left behind.
        HomeError: the folder cannot be written.
    """
    check_page(path)
    try:
        write_whole(path, text.encode())
    except (TransientError, HomeError) as error:
        cause = error.__cause__
        why = cause.strerror if isinstance(cause, OSError) else str(error)
        raise type(error)(
            f"--html {path} could not be written ({why}), nothing was left of it; make room, or "
            "name a place that this user may write to"
        ) from error
