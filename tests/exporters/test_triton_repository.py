"""What rnp-triton writes: the configuration, the copy, and what it refuses to write."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.wrappers_pb2 import StringValue

from bundles import bundle_copy, edit_manifest, flip, small_manifest
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.engine_set import open_engine_set
from rnp_deploy.errors import BundleError, InputError, IntegrityError, OutputError, OutputExistsError
from rnp_deploy.exporters import TritonSettings, triton_model, triton_repository, write_triton_model
from rnp_deploy.exporters.triton_repository import config_text, quoted
from triton_bundles import described_bundle


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "models").mkdir()
    return tmp_path / "models"
