"""The bundle format: reading, checking and writing it. Imports no framework and no runtime."""

from rnp_deploy.bundle.manifest import FORMAT_VERSION, Manifest
from rnp_deploy.bundle.reading import Bundle, open_bundle

__all__ = ["FORMAT_VERSION", "Bundle", "Manifest", "open_bundle"]
