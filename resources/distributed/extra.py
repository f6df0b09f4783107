"""Whether PyTorch is there; it comes with an extra of its own."""

import importlib.util

from platform_assets.domain.errors import UsageError


def require_torch() -> None:
    """Refuse where PyTorch is not installed.

    Raises:
        UsageError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            "this trainer needs PyTorch, which is not installed here; install it where trainings "
            "run, with `pip install signalbox[torch]` (docs/distributed.md says what that loads)"
        )
