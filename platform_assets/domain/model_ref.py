"""How a person names a model version: `flight-delay@12`, `flight-delay@champion`, `flights`."""

import re
from typing import Final

from pydantic import BaseModel, ConfigDict

from platform_assets.domain.errors import UsageError

CHAMPION: Final = "champion"
ALIASES: Final = (CHAMPION, "previous", "challenger")
"""The names that a version may go by; which one it is changes with the promotions."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_VERSION = re.compile(r"v?([1-9][0-9]{0,8})")


class ModelRef(BaseModel):
    """A registered model and which of its versions is meant.

    Attributes:
        name: of the registered model, or of its pipeline.
        version: number in the registry; None where an alias says which.
        alias: `champion`, `previous` or `challenger`; None where the version is given.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        """Read `MODEL`, `MODEL@VERSION` or `MODEL@ALIAS`; without either the champion is meant.

        Raises:
            UsageError: it is written otherwise.
        """
        name, separator, which = text.partition("@")
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{text!r} names no model; write a model or its pipeline, and maybe a version or "
                f"an alias: flight-delay, flight-delay@12, flight-delay@{CHAMPION}"
            )
        if not separator:
            return cls(name=name, alias=CHAMPION)
        number = _VERSION.fullmatch(which)
        if number:
            return cls(name=name, version=int(number[1]))
        if which in ALIASES:
            return cls(name=name, alias=which)
        raise UsageError(
            f"{text!r}: {which!r} is neither a version nor an alias; allowed are a number from 1, "
            f"{', '.join(ALIASES)}"
        )

    def __str__(self) -> str:
        return f"{self.name}@{self.alias or self.version}"
