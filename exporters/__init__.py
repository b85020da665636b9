"""Exporters: from a torch network to a bundle of ONNX graphs, or to one ONNX model."""

from rnp_deploy.exporters.bundle_export import export_bundle
from rnp_deploy.exporters.single_file import SingleFile, export_single_file

__all__ = ["SingleFile", "export_bundle", "export_single_file"]
