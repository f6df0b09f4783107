"""The console script `signalbox`."""

from platform_assets.cli.app import main

__all__ = ["main"]
