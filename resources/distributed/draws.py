"""The random numbers of a process: of torch, its GPU, numpy and Python, as one text."""

import hashlib
import json
import random
from typing import Any


def state() -> str:
    """Where they are: the generators that each library has for all, not those that code makes."""
    import numpy as np
    import torch

    name, keys, *rest = np.random.get_state(legacy=True)
    cuda = torch.cuda.is_available()
    return json.dumps(
        {
            "torch": _text(torch.get_rng_state()),
            "cuda": _text(torch.cuda.get_rng_state()) if cuda else None,
            "numpy": [name, keys.tolist(), *rest],  # type: ignore[union-attr]
            "python": random.getstate(),
        }
    )


def go_on(said: str) -> None:
    """Bring them to where they were; that of a GPU where there was one, and is one."""
    import numpy as np
    import torch

    found = json.loads(said)
    torch.set_rng_state(_tensor(found["torch"]))
    if found["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(found["cuda"]))
    name, keys, *rest = found["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, numbers, gauss = found["python"]
    random.setstate((version, tuple(numbers), gauss))


def begin(*of: int) -> None:
    """Begin them anew: the same for the same numbers, and others for others."""
    import numpy as np
    import torch

    digest = hashlib.sha256(json.dumps(of).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # that of a GPU too
    np.random.seed(int.from_bytes(digest[8:12], "big"))
    random.seed(digest[12:])


def _text(given: Any) -> str:
    return bytes(given.tolist()).hex()


def _tensor(text: str) -> Any:
    import torch

    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
