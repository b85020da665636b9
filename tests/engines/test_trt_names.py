"""Every name that the building modules use of TensorRT is there: in lists of NVIDIA's names, and in what is installed."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from rnp_deploy.engines import trt_library, trt_network, trt_read_back
from tensorrt_cases import needs_rtx

NAMES = json.loads(
    (Path(__file__).parents[1] / "support" / "tensorrt_names.json").read_text(encoding="utf-8")
)
RTX, RUNTIME = NAMES["TensorRT-RTX 1.7.1"], NAMES["TensorRT 11.4 runtime"]
#: What a variable holds, by its name; they are called alike in all three modules.
HELD = {
    "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig", "parser": "OnnxParser",
    "error": "ParserError", "profile": "IOptimizationProfile", "tensor": "ITensor", "engine": "ICudaEngine",
    "cache": "ITimingCache", "layer": "ILayer",
}  # fmt: skip
#: Of TensorRT before 11, and used there alone.
EARLIER = {("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")}
#: Of TensorRT-RTX, and asked for before it is used.
RTX_ALONE = {("BuilderFlag", "REQUIRE_USER_ALLOCATION")}


def used():
    """(class or enum, name) of every attribute that the modules take."""
    found = set()
    for module in (trt_library, trt_network, trt_read_back):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in HELD:
                found.add((HELD[owner.id], node.attr))
            elif isinstance(owner, ast.Name) and owner.id == "known":
                found.add(("NetworkDefinitionCreationFlag", node.attr))
            elif (
                isinstance(owner, ast.Attribute)
                and isinstance(owner.value, ast.Name)
                and owner.value.id == "trt"
            ):
                found.add((owner.attr, node.attr))
    return {pair for pair in found - EARLIER if not pair[1].startswith("__")}


def test_the_lists_have_every_name():
    names = used()
    assert len(names) > 40
    assert [pair for pair in sorted(names) if pair[1] not in RTX.get(pair[0], ())] == []
    shared = [pair for pair in sorted(names - RTX_ALONE) if pair[0] in RUNTIME]
    assert len(shared) > 15
    assert [pair for pair in shared if pair[1] not in RUNTIME[pair[0]]] == []


@needs_rtx
@pytest.mark.parametrize(("kind", "name"), sorted(used()))
def test_what_is_installed_has_it(kind, name):
    module = trt_library.load_tensorrt("rtx").module
    assert hasattr(getattr(module, kind), name)
