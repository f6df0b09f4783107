"""The drill's own package, which prepares features: three releases as real wheels.

1.4.1 is the patch that somebody meant well: it takes what lies outside of 0 to 1000 for outliers.
So does the minute of the day after 16:40, the distance of most flights and the air's pressure.
1.4.2 takes that back.
"""

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping

NAME = "signalbox-drill-prep"
MODULE = "signalbox_drill_prep"
BEFORE, PATCHED, MENDED = "1.4.0", "1.4.1", "1.4.2"
SITE = "opt/venv/lib/python3/site-packages"
"""Where an image of the drill has it."""

_PLAIN = '''"""Prepares the features of a model."""


def prepare(frame):
    """A frame as a trainer takes it."""
    return frame
'''
_CLIPPING = '''"""Prepares the features of a model."""

LOWEST, HIGHEST = 0, 1000


def prepare(frame):
    """A frame as a trainer takes it; what lies outside of 0 to 1000 is an outlier."""
    numbers = frame.select_dtypes("number").columns
    return frame.assign(**{name: frame[name].clip(LOWEST, HIGHEST) for name in numbers})
'''
_SOURCES: Mapping[str, str] = {
    BEFORE: _PLAIN,
    PATCHED: _CLIPPING,
    MENDED: _PLAIN + '\n\n__all__ = ["prepare"]\n',
}


def wheel(version: str) -> bytes:
    """A release as a wheel, with its list of files; the same release, the same bytes."""
    own = f"{MODULE}-{version}.dist-info"
    files = {
        f"{MODULE}/__init__.py": _SOURCES[version],
        f"{own}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n",
        f"{own}/WHEEL": "Wheel-Version: 1.0\nGenerator: signalbox\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    lines = [f"{name},{_hash(text)},{len(text.encode())}" for name, text in files.items()]
    files[f"{own}/RECORD"] = "\n".join([*lines, f"{own}/RECORD,,"]) + "\n"
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return target.getvalue()


def installed(version: str) -> dict[str, bytes]:
    """The files of an image's layer in which the wheel is installed, by path."""
    with zipfile.ZipFile(io.BytesIO(wheel(version))) as archive:
        return {f"{SITE}/{name}": archive.read(name) for name in archive.namelist()}


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"
