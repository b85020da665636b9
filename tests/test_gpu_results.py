"""The script that measures on a GPU: its sections on the CPU and on stand-ins for CUDA, and all of it in one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gpu_results
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import gpu_contenders
import gpu_networks
import gpu_sections
import gpu_tables
from every_backend import Backend
from gpu_contenders import Place
from rnp_deploy.bundle import open_bundle

BENCHMARKS = Path(gpu_sections.__file__).parent
CUDA = Backend("onnxruntime", "cuda", stand_in=True)
#: Section → rows, where there are two batch sizes and four options.
ROWS = {"parity": 9, "uniform": 8, "points": 8, "memory": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "vgg16"
    folder.mkdir()
    gpu_networks.make_vgg(folder, small=True)
    return folder


@pytest.fixture
def measure(folder, tmp_path, monkeypatch):
    def measured(section, backend, device):
        if device == "cuda":
            CUDA.stand_in_for_cuda(monkeypatch)
        place, output = Place(backend, device, folder), tmp_path / f"{section}-here.json"
        job = gpu_sections.Job(place, (4, 1), repeats=2, seconds=0.1, output=output)
        gpu_sections.SECTIONS[section](job)
        return json.loads(output.read_text())

    return measured


@pytest.mark.parametrize("section", ROWS)
@pytest.mark.parametrize(
    ("backend", "device"), [("torch", "cpu"), ("onnxruntime", "cpu"), ("onnxruntime", "cuda")]
)
def test_every_section_measures_every_row(section, backend, device, measure):
    rows = measure(section, backend, device)
    assert len(rows) == ROWS[section]
    assert [row.get("error") for row in rows] == [None] * len(rows)
    for row in rows:
        assert row.get("deviation", 0) <= 2e-2
        assert row.get("decisions_right", True)
        assert row.get("decisions_equal") == row.get("decisions")
        assert all(time["p10"] > 0 and time["runs"] == 2 for time in row.get("times", {}).values())
    table = gpu_tables.tables({f"{section}-here": rows}, {"points-torch": "stopped after 90 s"})
    assert table.count("\n| here |") == len(rows)
    assert "- points-torch: stopped after 90 s" in table


def test_the_bundle_that_is_timed_was_verified(folder):
    assert open_bundle(folder / "bundle").manifest.verification.samples > 0


def test_the_operating_points_are_at_the_speed_ups_wanted(folder, measure):
    manifest = open_bundle(folder / "bundle").manifest
    rows = measure("points", "onnxruntime", "cpu")
    for row in rows:
        assert row["theoretical"] == manifest.macs / manifest.path_macs(row["path"])
        # The tiny network has no more than 3.3x: that is then nearest.
        assert row["theoretical"] == pytest.approx(3 if row["target"] == 3 else 3.3, rel=0.05)
    assert len({tuple(row["path"]) for row in rows}) == 2


def test_the_agent_of_resnet_decides_by_what_it_sees(tmp_path):
    torch.manual_seed(0)  # as the script does
    gpu_networks.make_resnet(tmp_path, small=True)
    with np.load(tmp_path / "reference.npz") as reference:
        decided = reference["options"][[name.startswith("penalty") for name in reference["names"]]]
    assert len(decided) == 2
    assert (decided != decided[:, :1]).any(axis=(1, 2)).all()


def test_a_row_that_fails_is_written_down_and_the_others_are_measured(measure, monkeypatch):
    real = gpu_contenders.Subject.static

    def static(subject, images, path):
        if path[0] == 3:
            raise ValueError("no kernel")
        return real(subject, images, path)

    monkeypatch.setattr(gpu_contenders.Subject, "static", static)
    rows = measure("uniform", "onnxruntime", "cpu")
    assert [row.get("error") for row in rows] == [None, "ValueError: no kernel", None, None] * 2
    assert "- uniform-here, batch 4, option 3: ValueError: no kernel" in gpu_tables.tables(
        {"uniform-here": rows}, {}
    )


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Run the script on made-up networks; gives what it said, and the sections that it ran."""
    made = tmp_path / "made" / "vgg16" / "bundle" / "manifest.json"
    made.parent.mkdir(parents=True)
    made.write_text("{}")
    monkeypatch.setattr(gpu_results, "processor", lambda device, code: f"a {device}")

    def run(*options, rows=()):
        ran = []

        def run_section(section, bundle, out, *_):
            ran.append(section.name)
            (out / f"{section.name}.json").write_text(json.dumps(list(rows)))

        monkeypatch.setattr(gpu_results, "run_section", run_section)
        arguments = ["--bundle", str(tmp_path / "made"), "-o", str(tmp_path / "out"), "--backend", "torch"]
        return CliRunner().invoke(gpu_results.main, [*arguments, *options]), ran

    return run


def test_what_failed_is_measured_again_and_what_is_there_is_not(script):
    every = ["here-vgg16-auto", *(f"{kind}-vgg16-torch" for kind in ROWS)]
    for rows, expected in (
        ([{"row": "a", "error": "no kernel"}], every),
        ([], every),
        ([], every[:1]),
    ):
        done, ran = script(rows=rows)
        assert done.exit_code == 0, done.output
        assert ran == expected


def test_results_of_another_machine_device_or_network_are_not_added_to(script, tmp_path, monkeypatch):
    assert script()[0].exit_code == 0
    manifest = tmp_path / "made" / "vgg16" / "bundle" / "manifest.json"
    for options, gpu, text, word in (
        (["--device", "cpu"], "a cuda", "{}", "device cuda, now cpu"),
        (["--small"], "a cuda", "{}", "small False, now True"),
        ([], "another", "{}", "on a cuda, now another"),
        ([], "a cuda", "{ }", "vgg16's bundle 44136"),
    ):
        monkeypatch.setattr(gpu_results, "processor", lambda device, code, gpu=gpu: gpu)
        manifest.write_text(text)
        done, ran = script(*options)
        assert (done.exit_code, ran) == (1, [])
        assert word in done.output
        assert "pass another -o" in done.output


@pytest.mark.slow
def test_the_whole_script_on_the_cpu(tmp_path):
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu_results.py"),
        "--device",
        "cpu",
        "--small",
        "-o",
        str(tmp_path),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    results = json.loads((tmp_path / "gpu-results.json").read_text())
    assert results["notes"] == {}
    assert {name.split("-")[0] for name in results["sections"]} == {"here", *ROWS}
    assert done.stdout.count("\n| vgg16-torch | ") == sum(ROWS.values())
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stderr.count(": done") == 1  # of the machine alone; the rest was there
