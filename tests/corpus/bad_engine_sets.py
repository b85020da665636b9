"""Engine sets that a reader has to refuse, and the code it has to say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from damages import BAD_PATHS, bad_files, bad_json, replaced_by
from tiny_packages import DROPPED, Recipe, at, edit, edited, everywhere, rewritten, set_manifest_edited

__all__ = ["BAD_ENGINE_SETS"]

ENGINES = "engines.json"
HUGE = 2**31 - 1

#: Where, value, what is wrong: ``engines.json`` by itself.
FIELDS: tuple[tuple[str, Any, str], ...] = (
    ("novelty", 1, "an unknown key"),
    ("plan.novelty", 1, "an unknown key inside"),
    ("plan.steps.0.pieces.0.novelty", 1, "an unknown key inside"),
    ("plan.tensors.0.novelty", 1, "an unknown key inside"),
    ("producer", DROPPED, "a key is missing"),
    ("backend", "abacus", "a backend there is not"),
    ("backend", DROPPED, "no backend"),
    ("bundle_sha256", "0" * 63, "a sha256 too short"),
    ("bundle_sha256", None, "null for a sha256"),
    ("fingerprint", None, "null for an object"),
    ("fingerprint.machine", 1, "a number for a text"),
    ("fingerprint", [["machine", "x"]], "an array for an object"),
    ("plan", DROPPED, "no plan"),
    ("plan", [], "an array for a plan"),
    ("plan.steps", None, "null for steps"),
    ("plan.tensors", DROPPED, "no tensors"),
    ("decisions", -1, "decisions below 0"),
    ("decisions_equal", None, "null where it may only be left out"),
    ("max_deviation", "0", "a text for a number"),
    ("max_batch", 0, "batches of nothing"),
    ("max_batch", 2**31, "batches of 2^31"),
    ("max_batch", 8.0, "a float for a batch"),
    ("build_options", None, "null where it may only be left out"),
    ("environment.cores", 2, "a number for a text"),
    ("files.0.bytes", True, "true for bytes"),
    ("files.0.sha256", "0" * 64 + "0", "a sha256 too long"),
    ("files.+", {"path": "weights.bin", "bytes": 0, "sha256": "0" * 64}, "a file listed twice"),
    ("plan.tensors.0.dtype", "float64", "a type there is not"),
    ("plan.tensors.0.shape", None, "null for a shape"),
    ("plan.tensors.6.shape", [0], "a side of nothing"),
    ("plan.tensors.7.shape", [2**31], "a side of 2^31"),
    ("plan.tensors.7.shape", [2**11, 2**10, 2**10], "2^31 values a sample"),
    ("plan.tensors.7.shape", [HUGE] * 8, "more values than 64 bits count"),
    ("plan.tensors.7.shape", [2**16] * 8, "values whose number is 0 modulo 2^64"),
    ("plan.tensors.8.sizes", [2, 2**30], "more values at the largest size"),
    ("plan.tensors.8.sizes", [2, 0], "a size of nothing"),
    ("plan.tensors.8.axis", 0, "the axis of the batch"),
    ("plan.tensors.+", {"name": "x0", "shape": [2, 2, 2]}, "a tensor twice"),
    ("plan.tensors.7", DROPPED, "a tensor that is none of the plan"),
    ("plan.steps.0.outputs.x0", "x7", "a tensor that is none of the plan"),
    ("plan.steps.0.inputs.images", None, "null for a name"),
    ("plan.steps.0.inputs", ["images"], "an array of inputs"),
    ("plan.steps.0.agent_only", 0, "a number for a truth"),
    ("plan.steps.0.decides", -1, "a decision below 0"),
    ("plan.steps.0.decides", 0.0, "a float for a decision"),
    ("plan.steps.0.option_decisions", None, "null for decisions"),
    ("plan.steps.1.pieces.0.options", [0], "option 0"),
    ("plan.steps.1.pieces.0.options", [1.0], "a float for an option"),
    ("plan.steps.1.pieces.0.macs", -1, "MACs below 0"),
    ("plan.steps.1.pieces.0.weight_bytes", DROPPED, "a key is missing"),
    ("plan.steps.1.pieces.0.file", "s1/9.onnx", "a piece that is not listed"),
    ("plan.steps.1.in_place", {"x1": "images"}, "in place of what the step does not read"),
    ("plan.steps.1.in_place", {"outputs": "x0"}, "in place, what the step does not make"),
    ("plan.steps.1.in_place", None, "null where it may only be left out"),
)  # fmt: skip

#: Where, value, what is wrong: the plan beside the network.
PLANS: tuple[tuple[str, Any, str], ...] = (
    ("plan.tensors.0.dtype", "float16", "prices of half precision"),
    ("plan.tensors.0.shape", [2], "prices of two numbers"),
    ("plan.tensors.1.shape", [2], "a first state of another size"),
    ("plan.tensors.1.dtype", "bfloat16", "a first state of half precision"),
    ("plan.tensors.4.dtype", "float32", "options that are no integers"),
    ("plan.tensors.4.shape", [1], "options in an axis of their own"),
    ("plan.tensors.6.shape", [1, 2, 3], "images of another shape"),
    ("plan.tensors.6.dtype", "float16", "images of half precision"),
    ("plan.tensors.9.shape", [4], "outputs of another shape"),
    ("plan.tensors.9.dtype", "int32", "outputs that are integers"),
    ("plan.tensors.9.follows", 1, "outputs that follow a decision"),
    ("plan.tensors.8.follows", 2, "a tensor that follows a decision there is not"),
    ("plan.tensors.8.follows", 2**62, "a tensor that follows a decision there is not"),
    ("plan.tensors.8.sizes", [4], "a size too few"),
    ("plan.tensors.8.sizes", [], "no sizes"),
    ("plan.tensors.8.sizes", [1, 2, 4], "a size too many"),
    ("plan.tensors.8.axis", 4, "an axis there is not"),
    ("plan.tensors.8.axis", HUGE, "an axis of 2^31-1"),
    ("plan.tensors.8.follows", 1, "a tensor that follows a later decision"),
    ("plan.tensors.7.follows", 0, "a tensor that follows a decision, in no sizes"),
    ("plan.steps", [], "no steps"),
    ("plan.steps.2", DROPPED, "an output that nobody makes"),
    ("plan.steps.0", DROPPED, "a step without the one before"),
    ("plan.steps.0.inputs.again", "x1", "a tensor that is read before it is made"),
    ("plan.steps.0.inputs.again", "x0", "a tensor that is read by the step that makes it"),
    ("plan.steps.1.outputs.again", "x0", "a tensor that is made twice"),
    ("plan.steps.1.outputs.again", "images", "images that are made"),
    ("plan.steps.1.outputs.again", "agent/penalty", "prices that are made"),
    ("plan.steps.1.outputs.again", "x1", "a tensor that one step makes twice"),
    ("plan.steps.0.option_decisions", [0], "an option that is not chosen yet"),
    ("plan.steps.2.option_decisions", [0, 1, 2], "an option of a decision there is not"),
    ("plan.steps.2.option_decisions", [0, 1, 2**40], "an option of a decision there is not"),
    ("plan.steps.2.option_decisions", [1], "a piece of more options than name it"),
    ("plan.steps.2.option_decisions", [0, 1] * 20_000, "2^40000 choices"),
    ("plan.steps.0.decides", None, "a decision that nobody takes"),
    ("plan.steps.2.decides", 0, "a decision that is taken twice"),
    ("plan.steps.2.decides", 2, "a decision there is not"),
    ("plan.steps.2.decides", 2**62, "a decision there is not"),
    ("plan.steps.0.decides", 1, "a decision without its option"),
    ("plan.steps.0.agent_only", True, "a step of the agent that gives more than the agent does"),
    ("plan.steps.2.agent_only", True, "a step of the agent that decides nothing"),
    ("plan.steps.2.pieces.3", DROPPED, "a piece too few"),
    ("plan.steps.2.pieces", [], "no pieces"),
    ("plan.steps.2.pieces.0.options", [2, 2], "two pieces for the same options"),
    ("plan.steps.2.pieces.0.options", [1, 3], "an option there is not"),
    ("plan.steps.2.pieces.0.options", [HUGE, 1], "an option of 2^31-1"),
    ("plan.steps.2.pieces.0.options", [1], "an option too few"),
    ("plan.steps.2.pieces.0.options", [1, 1, 1], "an option too many"),
    ("plan.steps.0.pieces.0.options", [1], "an option where there is no choice"),
    ("plan.steps.1.pieces.+",
     {"options": [1], "file": "s1/1.onnx", "macs": 1, "weight_bytes": 1}, "a piece twice"),
)  # fmt: skip


def _manifests() -> list[Recipe]:
    def longer(folder: Path) -> None:
        with (folder / "manifest.json").open("ab") as stream:
            stream.write(b"\n")

    return [
        Recipe("set without manifest", "missing", "no manifest", replaced_by("nothing", "manifest.json")),
        Recipe("set manifest a link", "link", "a link", replaced_by("link", "manifest.json")),
        Recipe("set manifest no JSON", "json", "no JSON", rewritten(lambda _: b"{")),
        Recipe("set manifest of the future", "version", "another version", edited(at("format_version", "2.0"))),
        Recipe("set manifest changed", "values-hash", "a value", edited(at("groups", 3), sign=False)),
        Recipe("set manifest path", "path", "a path", edited(at("files.0.path", "../x"))),
        Recipe("set manifest misfit", "fields", "groups", edited(at("groups", 3))),
        Recipe("set manifest signed anew", "other-bundle", "another bundle's", edited(at("producer", "another"))),
        Recipe("set manifest in other words", "other-bundle", "a line feed more", longer),
        Recipe("set of another bundle", "other-bundle", "another hash",
               edited(at("bundle_sha256", "0" * 64), ENGINES)),
        Recipe("other bundle before plan", "other-bundle", "the bundle is looked at before the plan",
               edited(lambda raw: (at("bundle_sha256", "0" * 64)(raw), at("plan.steps", [])(raw)), ENGINES)),
        Recipe("set of another network", "plan", "a network with another state",
               set_manifest_edited(at("agent.state_size", 4))),
        Recipe("set of other options", "plan", "a network with an option more", set_manifest_edited(_third_option)),
        Recipe("set of other images", "plan", "a network with other images",
               set_manifest_edited(lambda raw: (at("preprocessing", None)(raw),
                                                everywhere("images", {"shape": [1, 2, 3]})(raw)))),
        Recipe("set without prices", "plan", "no prices", edited(_without_prices, ENGINES)),
        Recipe("set of a third decision", "plan", "a decision there is not, and its option",
               edited(_third_decision, ENGINES)),
        Recipe("set whose agent may be skipped", "plan", "a step reads a state that is not made where options are given",
               edited(_agent_apart, ENGINES)),
        Recipe("plan before files", "plan", "the plan is looked at before files",
               lambda f: (edit(f, ENGINES, at("plan.steps", [])), os.remove(f / "weights.bin"))),
    ]  # fmt: skip


def _without_prices(raw: dict[str, Any]) -> None:
    del raw["plan"]["tensors"][0]
    for step in raw["plan"]["steps"][:2]:
        del step["inputs"]["agent/penalty"]


def _agent_apart(raw: dict[str, Any]) -> None:
    """The first decision gets a step of the agent alone, whose state the next stage reads."""
    stem = raw["plan"]["steps"][0]
    agent = {
        **stem,
        "inputs": {name: name for name in ("x0", "agent/penalty", "agent/state.0")},
        "outputs": {name: stem["outputs"].pop(name) for name in ("agent/state.1", "agent/option.0")},
        "agent_only": True,
    }
    stem.update(decides=None)
    raw["plan"]["steps"].insert(1, agent)


def _third_decision(raw: dict[str, Any]) -> None:
    option = "agent/option.2"
    raw["plan"]["tensors"].append({"name": option, "shape": [], "dtype": "int64"})
    raw["plan"]["steps"][1].update(decides=2)
    raw["plan"]["steps"][1]["outputs"][option] = option
    raw["plan"]["steps"][2]["option_decisions"] = [0, 2]


def _third_option(raw: dict[str, Any]) -> None:
    """The second decision gets an option more, with all that belongs to it."""
    raw["decisions"][1]["widths"] = raw["convolutions"][2]["widths"] = [3, 5, 7]
    raw["groups"] = 3
    raw["stages"][2]["branches"] += [
        {"input_options": [a], "output_option": 3, "file": f"s2/{a}-2.onnx", "macs": 1, "weight_bytes": 1}
        for a in (1, 2)
    ]


def _engines_files() -> list[Recipe]:
    paths = [
        Recipe(f"set path {path!r}", "path", f"the path {path!r}",
               edited(lambda raw, path=path: raw["files"][-1].update(path=path), ENGINES))
        for path in BAD_PATHS
    ]  # fmt: skip
    also_wrong = edited(lambda raw: (at("novelty", 1)(raw), at("files.0.path", "../x")(raw)), ENGINES)
    return [
        *paths,
        Recipe("set path before fields", "path", "a path, looked at before the fields", also_wrong),
        Recipe("engines.json a link", "link", "a link", replaced_by("link", ENGINES)),
        Recipe(
            "set with a link on the way", "link", "a folder on the way is a link", replaced_by("link", "s2")
        ),
        Recipe(
            "set size of 2^62", "file-size", "a size of 2^62", edited(at("files.3.bytes", 2**62), ENGINES)
        ),
        *(recipe._replace(name=f"set {recipe.name}") for recipe in bad_files("weights.bin")),
        *(recipe._replace(name=f"set {recipe.name}") for recipe in bad_files("timing.cache")),
        *(recipe._replace(name=f"set {recipe.name}") for recipe in bad_files("s1/2.onnx", hashed=False)),
    ]


BAD_ENGINE_SETS: list[Recipe] = [
    *bad_json(ENGINES),
    *_manifests(),
    *_engines_files(),
    *(Recipe(f"set field {where} {i}", "fields", wrong, edited(at(where, value), ENGINES))
      for i, (where, value, wrong) in enumerate(FIELDS)),
    *(Recipe(f"plan {where} {i}", "plan", wrong, edited(at(where, value), ENGINES))
      for i, (where, value, wrong) in enumerate(PLANS)),
]  # fmt: skip
