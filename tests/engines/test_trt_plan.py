"""The plan of a TensorRT set: files, layouts, edges."""

from __future__ import annotations

import json

import pytest

from bundles import small_manifest
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.engines.trt_graph import Edge
from rnp_deploy.engines.trt_plan import piece_sources, tensorrt_plan, with_files
from rnp_deploy.plan import check_plan, option_name, plan_of_bundle


def manifest_of(dtype):
    """The small one, of this type but for its images and outputs."""
    raw = small_manifest().model_dump(mode="json")
    for stage in raw["stages"]:
        for tensor in (*stage["inputs"], *stage["outputs"]):
            if tensor["name"] not in ("images", "outputs"):
                tensor["dtype"] = dtype
    return Manifest.model_validate_json(json.dumps(raw))


def test_in_single_precision_only_options_change():
    manifest = small_manifest()
    plan, own = tensorrt_plan(manifest), plan_of_bundle(manifest)
    check_plan(plan, manifest)
    changed = {a.name: a.dtype for a, b in zip(plan.tensors, own.tensors, strict=True) if a != b}
    assert changed == {option_name(0): "int32", option_name(1): "int32"}
    assert plan.steps == own.steps


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_images_of_half_precision_have_channels_last_in_eights(dtype):
    manifest = manifest_of(dtype)
    plan = tensorrt_plan(manifest)
    check_plan(plan, manifest)
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    assert (tensors["x0"].shape, tensors["x0"].axis, tensors["x0"].sizes) == ((2, 2, 8), 3, ())
    assert (tensors["x1"].shape, tensors["x1"].axis, tensors["x1"].sizes) == ((2, 2, 8), 3, (8, 8))
    assert tensors["x1"].shape_at([1, 2]) == (2, 2, 8)
    assert tensors["f1"].shape == (4,)
    assert tensors["images"].shape == (1, 2, 2)
    first, second = piece_sources(manifest)[2:4]
    assert first.where == "stage 1, options 1 (s1/1.onnx)"
    assert first.inputs == (Edge("x0", (2, 2, 2), dtype, channels_last=True),)
    assert first.outputs[0] == Edge("x1", (2, 2, 2), dtype, channels_last=True)
    assert second.outputs[0] == Edge("x1", (4, 2, 2), dtype, channels_last=True)
    assert second.outputs[1] == Edge("f1", (4,), dtype)


def test_pieces_come_in_the_order_of_the_plan():
    sources = piece_sources(small_manifest())
    plan = plan_of_bundle(small_manifest())
    assert [s.file for s in sources] == [piece.file for step in plan.steps for piece in step.pieces]
    assert sources[1].where == "agent step 0 (agent/0.onnx)"
    assert [edge.name for edge in sources[1].outputs] == ["option", "next_state"]
    assert sources[1].outputs[0] == Edge("option", (), "int32")
    assert sources[-1].where == "stage 2, options 2 2 (s2/2-2.onnx)"


def test_equal_pieces_share_a_file():
    plan = tensorrt_plan(small_manifest())
    keys = ["a", "b", "c", "c", "d", "e", "f", "g", "h"]
    built, files = with_files(plan, keys)
    assert [piece.file for piece in built.steps[2].pieces] == ["s1/1.engine"] * 2
    assert files["c"] == "s1/1.engine"
    assert len(files) == 8
    assert files["h"] == "s2/2-2.engine"
