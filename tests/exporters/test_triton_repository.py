"""What rnp-triton writes: the configuration, the copy, and what it refuses to write."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.wrappers_pb2 import StringValue

from bundles import bundle_copy, flip, small_manifest
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.engine_set import open_engine_set
from rnp_deploy.errors import BundleError, InputError, IntegrityError, OutputError, OutputExistsError
from rnp_deploy.exporters import TritonSettings, triton_repository, write_triton_model
from rnp_deploy.exporters.triton_repository import config_text, quoted
from rnp_deploy.latency import LatencyCurve, LatencyPoint, save_latency_curve
from triton_bundles import described_bundle

CURVE = LatencyCurve(
    batch=1,
    threads=1,
    data="random",
    images=1,
    runs=1,
    environment={},
    points=(LatencyPoint(penalty=0.0, macs_share=1.0, p50_ms=1.0, p95_ms=2.0),),
)


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "place" / "models").mkdir(parents=True)
    return tmp_path / "place" / "models"


@pytest.fixture
def bundle(exported, tmp_path):
    return described_bundle(exported("chain").path, tmp_path / "bundle")


def alone(repository):
    """That nothing but the repository was left, hidden or not."""
    return [path.name for path in repository.parent.iterdir()] == [repository.name]


def test_a_bundle_is_copied_whole_and_nothing_else_of_its_folder(bundle, repository):
    expected = contents(bundle)
    (bundle / "notes.txt").write_text("not of the bundle")
    written = write_triton_model(bundle, repository / "chain")
    folder = repository / "chain"
    assert contents(folder / "1" / "bundle") == expected
    assert open_bundle(folder / "1" / "bundle").manifest == open_bundle(bundle).manifest
    assert (written.path, written.kind, written.max_batch, written.device) == (folder, "bundle", 8, "cpu")
    assert written.files == ("1/model.py", "config.pbtxt", "labels.txt")
    assert written.bytes == sum(map(len, expected.values()))
    assert files_of(folder) == sorted([*written.files, *(f"1/bundle/{name}" for name in expected)])
    assert alone(repository)


def test_an_engine_set_is_copied_whole(engine_set, repository, tmp_path):
    source = shutil.copytree(engine_set("chain"), tmp_path / "engines")
    save_latency_curve((CURVE,), source / "latency.json")
    written = write_triton_model(source, repository / "chain")
    assert written.kind == "engine set"
    assert contents(written.path / "1" / "bundle") == contents(source)
    open_engine_set(written.path / "1" / "bundle").check_engines()


def test_the_model_is_a_module_of_this_package(bundle, repository):
    written = write_triton_model(bundle, repository / "chain")
    text = (written.path / "1" / "model.py").read_text()
    assert text == Path(triton_repository.__file__).with_name("triton_model.py").read_text()
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom | ast.Import)
    }
    assert not [name for name in imported if "exporters" in name or "engines" in name]


def test_there_is_a_label_a_line(bundle, repository):
    written = write_triton_model(bundle, repository / "chain")
    lines = (written.path / "labels.txt").read_text(encoding="utf-8").splitlines()
    classes = open_bundle(bundle).manifest.classes
    assert lines == [" ".join(name.split()) for name in classes]
    assert "cat fish" in lines


def test_without_classes_there_are_no_labels(exported, repository):
    written = write_triton_model(exported("chain").path, repository / "chain")
    assert written.files == ("1/model.py", "config.pbtxt")
    assert "label" not in (written.path / "config.pbtxt").read_text()


CONFIG = r"""name: "small"
backend: "python"
max_batch_size: 16
input [
  { name: "images" data_type: TYPE_FP32 dims: [ 1, 2, 2 ] },
  { name: "penalty" data_type: TYPE_FP32 dims: [ 1 ] optional: true },
  { name: "target_macs" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
]
output [
  { name: "outputs" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "options" data_type: TYPE_INT64 dims: [ 2 ] },
  { name: "macs" data_type: TYPE_INT64 dims: [ 1 ] }
]
dynamic_batching { max_queue_delay_microseconds: 1500 preferred_batch_size: [ 4, 16 ] }
instance_group [ { kind: KIND_GPU gpus: [ 0 ] count: 2 } ]
parameters { key: "backend" value { string_value: "torch" } }
parameters { key: "device" value { string_value: "cuda" } }
parameters { key: "policy" value { string_value: "serial" } }
parameters { key: "preload" value { string_value: "all" } }
parameters { key: "threads" value { string_value: "3" } }
parameters { key: "memory_budget_bytes" value { string_value: "1000" } }
"""


def test_the_configuration_says_what_was_chosen():
    settings = TritonSettings(
        max_delay_ms=1.5,
        preferred_batches=(4, 16),
        instances=2,
        backend="torch",
        threads=3,
        preload="all",
        policy="serial",
        memory_budget_bytes=1000,
    )
    assert config_text("small", small_manifest(), settings, max_batch=16, device="cuda") == CONFIG


def test_what_is_not_chosen_is_left_out():
    text = config_text("small", small_manifest(), TritonSettings(), max_batch=8, device="cpu")
    assert "dynamic_batching { max_queue_delay_microseconds: 2000 }\n" in text
    assert "instance_group [ { kind: KIND_CPU count: 1 } ]\n" in text
    assert "threads" not in text
    assert "memory_budget" not in text


def renamed(end, name):
    manifest = small_manifest()
    tensor = getattr(manifest, end)[0].model_copy(update={"name": name})
    return manifest.model_copy(update={end: (tensor,)})


@pytest.mark.parametrize(
    "name", ["plain", 'a"b', "back\\slash", "new\nline", "é 画像", '"} evil: "', "nul\0tab\t", "\\n1", "7"]
)
def test_names_are_escaped(name):
    parsed = text_format.Parse(f"value: {quoted(name)}", StringValue())
    assert parsed.value == name
    text = config_text("m", renamed("inputs", name), TritonSettings(), max_batch=8, device="cpu")
    assert text.isascii()
    assert f"  {{ name: {quoted(name)} data_type: TYPE_FP32 dims: [ 1, 2, 2 ] }},\n" in text
    assert len(text.splitlines()) == len(
        config_text("m", small_manifest(), TritonSettings(), max_batch=8, device="cpu").splitlines()
    )


@pytest.mark.parametrize(
    ("end", "name"),
    [("inputs", "penalty"), ("inputs", "target_macs"), ("outputs", "options"), ("outputs", "macs")],
)
def test_a_network_may_not_take_the_names_of_the_models_own_tensors(end, name):
    with pytest.raises(InputError, match=f"tensor '{name}'"):
        config_text("m", renamed(end, name), TritonSettings(), max_batch=8, device="cpu")


def test_a_network_that_gives_one_number_has_an_axis_for_it():
    manifest = small_manifest()
    output = manifest.outputs[0].model_copy(update={"shape": ()})
    text = config_text(
        "m", manifest.model_copy(update={"outputs": (output,)}), TritonSettings(), max_batch=8, device="cpu"
    )
    assert '{ name: "outputs" data_type: TYPE_FP32 dims: [ 1 ] }' in text


def of_engines(source, monkeypatch, **changes):
    """Let an engine set be of another backend or largest batch."""
    opened = open_engine_set(source)
    engines = opened.engines.model_copy(update=changes)
    monkeypatch.setattr(triton_repository, "_verified", lambda path: (opened.manifest, engines))


def with_latency(text):
    return lambda file, _: file.write_text(text)


@pytest.mark.parametrize(
    "make",
    [with_latency("measured here"), with_latency('{"format_version": "1.0"}'), lambda file, _: file.mkdir()],
    ids=["text", "not signed", "folder"],
)
def test_what_is_no_latency_curve_is_left_out(make, engine_set, repository, tmp_path, caplog):
    source = shutil.copytree(engine_set("chain"), tmp_path / "engines")
    expected = contents(source)
    make(source / "latency.json", tmp_path)
    written = write_triton_model(source, repository / "m")
    assert contents(written.path / "1" / "bundle") == expected
    assert f"the latency curve is left out: {source / 'latency.json'}" in caplog.text


@pytest.mark.parametrize("there", [True, False])
def test_a_latency_curve_behind_a_link_is_refused(there, engine_set, repository, tmp_path):
    source = shutil.copytree(engine_set("chain"), tmp_path / "engines")
    if there:
        save_latency_curve((CURVE,), tmp_path / "secret")
    (source / "latency.json").symlink_to(tmp_path / "secret")
    with pytest.raises(IntegrityError, match=r"latency\.json is a link") as caught:
        write_triton_model(source, repository / "m")
    assert caught.value.code == "link"
    assert not list(repository.iterdir())


def test_a_source_that_is_replaced_by_another_while_it_is_copied_is_noticed(
    bundle, exported, repository, monkeypatch
):
    copy, other = triton_repository._copy, exported("chain").path
    monkeypatch.setattr(triton_repository, "_copy", lambda source, target, *rest: copy(other, target, *rest))
    with pytest.raises(IntegrityError, match="replaced while it was copied") as caught:
        write_triton_model(bundle, repository / "m")
    assert caught.value.code == "changed"
    assert not list(repository.iterdir())


@pytest.mark.parametrize(
    ("most", "asked", "batch"), [(None, None, 8), (4, None, 4), (64, None, 8), (4, 32, 32), (None, 2, 2)]
)
def test_the_largest_batch_is_what_engines_take_unless_it_is_given(
    most, asked, batch, engine_set, repository, monkeypatch
):
    of_engines(engine_set("chain"), monkeypatch, max_batch=most)
    settings = TritonSettings(max_batch=asked)
    written = write_triton_model(engine_set("chain"), repository / "m", settings=settings)
    assert written.max_batch == batch
    assert f"max_batch_size: {batch}\n" in (repository / "m" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("backend", "asked", "kind"),
    [
        ("tensorrt", "auto", "KIND_GPU"),
        ("onnxruntime", "auto", "KIND_CPU"),
        ("tensorrt", "cpu", "KIND_CPU"),
        ("onnxruntime", "cuda", "KIND_GPU"),
    ],
)
def test_engines_of_tensorrt_run_on_the_gpu(backend, asked, kind, engine_set, repository, monkeypatch):
    of_engines(engine_set("chain"), monkeypatch, backend=backend)
    write_triton_model(engine_set("chain"), repository / "m", settings=TritonSettings(device=asked))
    text = (repository / "m" / "config.pbtxt").read_text()
    assert f"kind: {kind} " in text
    device = {"KIND_GPU": "cuda", "KIND_CPU": "cpu"}[kind]
    assert f'key: "device" value {{ string_value: "{device}" }}' in text


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch": 0},
        {"instances": 0},
        {"threads": 0},
        {"memory_budget_bytes": 0},
        {"preferred_batches": (4, 0)},
        {"max_delay_ms": -1.0},
        {"max_delay_ms": float("nan")},
        {"max_delay_ms": float("inf")},
        {"max_delay_ms": 3_600_001.0},
        {"backend": "onnx"},
        {"device": "cuda:0"},
        {"preload": ""},
        {"policy": "round_up"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        TritonSettings(**settings)


def test_a_backend_that_does_not_run_the_engine_set_is_refused(engine_set, repository):
    with pytest.raises(InputError, match="backend is 'tensorrt', and the engine set is of onnxruntime"):
        write_triton_model(engine_set("chain"), repository / "m", settings=TritonSettings(backend="tensorrt"))
    assert list(repository.iterdir()) == []


def test_a_preferred_batch_above_the_largest_is_refused(bundle, repository):
    with pytest.raises(InputError, match="preferred batch of 9 is above the largest, 8"):
        write_triton_model(bundle, repository / "m", settings=TritonSettings(preferred_batches=(4, 9)))
    assert not list(repository.iterdir())


@pytest.mark.parametrize("name", ["-m", ".m", "a b", "ä", "a/..", "m" * 129, "a:b", "_m", "a\n"])
def test_names_that_are_no_models_are_refused(name, bundle, repository):
    with pytest.raises(InputError, match="cannot be the name of a model"):
        write_triton_model(bundle, f"{repository}/{name}")
    assert not list(repository.iterdir())


def test_a_repository_has_to_exist(bundle, repository):
    with pytest.raises(InputError, match="does not exist; create it first"):
        write_triton_model(bundle, repository / "none" / "m")


def test_a_model_is_replaced_only_where_that_is_asked_for(bundle, exported, repository):
    write_triton_model(bundle, repository / "m")
    before = contents(repository / "m")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_triton_model(exported("chain").path, repository / "m")
    assert contents(repository / "m") == before
    write_triton_model(exported("chain").path, repository / "m", overwrite=True)
    assert "labels.txt" not in contents(repository / "m")
    assert alone(repository)


@pytest.mark.parametrize("marker", ["config.pbtxt", "1/model.py", "manifest.json"])
def test_a_model_of_another_kind_is_not_replaced(marker, bundle, repository):
    (repository / "m" / marker).parent.mkdir(parents=True)
    (repository / "m" / marker).write_text("someone else's")
    with pytest.raises(OutputExistsError, match="not ours to overwrite"):
        write_triton_model(bundle, repository / "m", overwrite=True)
    assert (repository / "m" / marker).read_text() == "someone else's"


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (flip("weights.bin"), IntegrityError),
        (flip("stages/00/full.onnx"), IntegrityError),
        (flip("manifest.json"), BundleError),
        (lambda folder: (folder / "weights.bin").unlink(), IntegrityError),
        (shutil.rmtree, BundleError),
    ],
)
def test_a_bad_bundle_is_not_copied(damage, error, bundle, repository):
    damage(bundle)
    with pytest.raises(error, match=str(bundle)):
        write_triton_model(bundle, repository / "m")
    assert not list(repository.iterdir())
    assert alone(repository)


def test_a_bad_engine_is_not_copied(engine_set, repository, tmp_path):
    source = bundle_copy(engine_set("chain"), tmp_path / "engines")
    engine = next(name for name in files_of(source) if name.endswith(".onnx"))
    flip(engine)(source)
    with pytest.raises(IntegrityError, match=engine):
        write_triton_model(source, repository / "m")
    assert not list(repository.iterdir())


def test_a_source_that_changes_while_it_is_copied_is_noticed(bundle, repository, monkeypatch):
    copy = shutil.copyfile

    def changing(source, target):
        copy(source, target)
        if Path(target).name == "weights.bin":
            flip("weights.bin")(Path(target).parent)

    write_triton_model(bundle, repository / "m")
    before = contents(repository / "m")
    monkeypatch.setattr(triton_repository.shutil, "copyfile", changing)
    with pytest.raises(IntegrityError, match=r"weights\.bin"):
        write_triton_model(bundle, repository / "m", overwrite=True)
    assert contents(repository / "m") == before
    assert alone(repository)


def seen_while_writing(bundle, repository, monkeypatch):
    """What lies in the repository and beside it while files are copied."""
    seen, copy = set(), shutil.copyfile

    def watching(source, target):
        seen.add((tuple(os.listdir(repository)), tuple(sorted(os.listdir(repository.parent)))))
        return copy(source, target)

    monkeypatch.setattr(triton_repository.shutil, "copyfile", watching)
    write_triton_model(bundle, repository / "m")
    (only,) = seen
    return only


def test_a_repository_never_holds_half_a_model(bundle, repository, monkeypatch):
    inside, beside = seen_while_writing(bundle, repository, monkeypatch)
    assert inside == ()
    assert [name for name in beside if name.startswith(".m.partial-")]


def test_a_repository_in_a_place_that_cannot_be_written_to_holds_it_hidden(bundle, repository, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(
        triton_repository.os, "access", lambda path, mode: path != repository.parent and allowed(path, mode)
    )
    inside, beside = seen_while_writing(bundle, repository, monkeypatch)
    assert [name for name in inside if name.startswith(".m.partial-")]
    assert beside == (repository.name,)
    assert os.listdir(repository) == ["m"]


def test_a_full_disk_is_told_and_leaves_nothing(bundle, repository, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton_repository.shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        write_triton_model(bundle, repository / "m")
    assert not list(repository.iterdir())
    assert alone(repository)
