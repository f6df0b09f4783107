"""Images in a registry: what a tag points at, and what is in an image."""

from resources.oci.packages import packages
from resources.oci.registry import Registry, exists, resolve

__all__ = ["Registry", "exists", "packages", "resolve"]
