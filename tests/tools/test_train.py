"""rnp-train, end to end on a tiny scale."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from commands import failure, json_report, success
from rnp_deploy.datasets import load_data
from rnp_deploy.network.checkpoint import load_checkpoint
from rnp_deploy.preprocessing import read_images
from rnp_deploy.tools.train import main
from rnp_deploy.training import evaluate, phases
from rnp_deploy.training.baselines import AGENT, DEALT, FIXED, NARROW, RANDOM

#: An epoch is 10 minibatches: 10 + 10 + 10 + 4 + 2 steps.
TINY = [
    "--device", "cpu", "--widths", "4,4,4,4", "--groups", "2", "--batch-size", "128",
    "--backbone-epochs", "1", "--random-epochs", "1", "--rounds", "1", "--agent-minibatches", "4",
    "--backbone-minibatches", "2", "--calibration-images", "40",
]  # fmt: skip
CHECKPOINT = ["calibration.png", "checkpoint.json", "model.safetensors"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def interrupted(
    output: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object, step: str = "agent_step"
) -> None:
    """Begin a run and stop it by Ctrl-C in a phase, its state of the step before kept."""

    def stop(*_: Any) -> phases.StepResult:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phases, step, stop)
        result = invoke("-o", output, *TINY, "--save-every", 0, *arguments)
    assert result.exit_code == 1
    assert "Aborted" in result.stderr


def test_the_checkpoint_holds_what_the_report_says(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    report = json_report(main, ["-o", tmp_path / "out", *TINY, "--seed", 3, "--sample-images", samples])
    assert report["checkpoint"] == str(tmp_path / "out")
    assert (report["seed"], report["penalty"], report["skipped"], report["baselines"]) == (3, 0.05, 0, [])
    assert files(tmp_path / "out") == CHECKPOINT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "samples"]  # and no state
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.calibration is not None
    assert checkpoint.preprocessing is not None
    assert report["calibration"] == checkpoint.calibration.model_dump(mode="json")
    assert checkpoint.calibration.samples == 40
    data = load_data("digits")
    assert checkpoint.classes == data.classes
    images = read_images(sorted(samples.iterdir()), checkpoint.preprocessing)
    assert (images == data.test.read(np.arange(12))[0]).all()


def test_the_calibration_of_all_held_out_images_is_what_evaluation_finds(tmp_path: Path) -> None:
    success(main, ["-o", tmp_path / "out", *TINY, "--calibration-images", 1000])
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.calibration is not None
    assert checkpoint.calibration.samples == 450
    test, own = load_data("digits").test, checkpoint.network.agent.penalty
    assert evaluate(checkpoint.network, test) == checkpoint.calibration.at(own)


def test_the_report_is_one_line_and_progress_is_elsewhere(tmp_path: Path) -> None:
    result = success(main, ["-o", tmp_path / "out", *TINY])
    assert result.stdout.startswith("test accuracy ")
    assert "40 held-out images); penalty -0.02 to 1: " in result.stdout
    assert result.stdout.count("\n") == 1
    rows = [line.rsplit("/", 1)[0].rstrip() for line in result.stderr.splitlines() if " % " in line]
    assert [" ".join(row.split()) for row in rows] == [
        "backbone 10", "random options 20", "measuring the loss 30", "agent 34", "backbone under the agent 36",
    ]  # fmt: skip
    assert "random options: 10/10" in result.stderr
    again = success(main, ["-o", tmp_path / "out", *TINY, "--overwrite"])
    assert again.stdout == result.stdout


def test_a_fixed_agent_is_trained_for_one_price(tmp_path: Path) -> None:
    success(main, ["-o", tmp_path / "out", *TINY, "--fixed-penalty", "--penalty", 0.1])
    agent = load_checkpoint(tmp_path / "out").network.agent
    assert (agent.scale, agent.penalty_range, agent.penalty) == (None, None, 0.1)


def test_options_reach_the_training(tmp_path: Path) -> None:
    success(main, ["-o", tmp_path / "out", *TINY, "--penalty-range", -0.1, 0.9, "--mixed-precision"])
    network = load_checkpoint(tmp_path / "out").network
    assert network.agent.penalty_range == (-0.1, 0.9)
    success(main, ["-o", tmp_path / "exact", *TINY, "--penalty-range", -0.1, 0.9])
    exact = load_checkpoint(tmp_path / "exact").network
    assert not torch.equal(network.agent.decoder.weight, exact.agent.decoder.weight)


def test_baselines_are_a_table_and_files_of_the_checkpoint(tmp_path: Path) -> None:
    result = success(main, ["-o", tmp_path / "out", *TINY, "--baselines"])
    assert files(tmp_path / "out") == sorted([*CHECKPOINT, "baselines.json", "baselines.png"])
    points = json.loads((tmp_path / "out" / "baselines.json").read_text())
    assert {point["method"] for point in points} == {AGENT, FIXED, RANDOM, DEALT, NARROW}
    *rows, last = result.stdout.splitlines()
    assert last.startswith("test accuracy ")
    for row, point in zip(rows, points, strict=True):
        assert row.startswith(point["method"])
        assert f"{100 * point['macs_share']:.1f} % of the MACs" in row
        assert row.endswith(f"{100 * point['accuracy']:.1f} %")
    for name in ("baselines.png", "calibration.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "narrow network 1: 22/22" in result.stderr


def test_tensorboard_logs_hold_the_rows(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    success(main, ["-o", tmp_path / "out", *TINY, "--tensorboard", tmp_path / "logs"])
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("agent/loss")] == [34]
    assert [event.step for event in events.Scalars("backbone/accuracy")] == [10]


def test_an_unfinished_run_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path / "out", monkeypatch)
    assert files(tmp_path) == ["out.run/state.pt"]
    error = failure(main, ["-o", tmp_path / "out", *TINY])
    assert "out.run holds an unfinished run of this output; pass --resume to go on with it" in error
    result = invoke("-o", tmp_path / "out", *TINY, "--resume", "--seed", 1)
    assert result.exit_code == 1
    assert (
        "of another configuration: first weights: another; seed was 0, is 1; pass what it was begun with"
        in result.stderr
    )
    assert files(tmp_path) == ["out.run/state.pt"]


@pytest.mark.parametrize(("flag", "first"), [("--resume", "agent"), ("--overwrite", "backbone")])
def test_an_unfinished_run_is_gone_on_with_or_begun_anew(
    flag: str, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path / "out", monkeypatch)
    result = success(main, ["-o", tmp_path / "out", *TINY, flag])
    _titles, row = [line for line in result.stderr.splitlines() if ": " not in line][:2]
    assert row.split()[0] == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    whole = success(main, ["-o", tmp_path / "whole", *TINY])
    assert result.stdout == whole.stdout
    for name in CHECKPOINT:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_overwriting_with_an_unfinished_run_keeps_the_earlier_output_till_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    success(main, ["-o", tmp_path / "out", *TINY])
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    interrupted(tmp_path / "out", monkeypatch, "--overwrite", "--seed", 1)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    success(main, ["-o", tmp_path / "out", *TINY, "--overwrite", "--resume", "--seed", 1])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_without_an_unfinished_run_resuming_begins_one(tmp_path: Path) -> None:
    success(main, ["-o", tmp_path / "out", *TINY, "--resume"])
    assert files(tmp_path / "out") == CHECKPOINT


def test_a_loss_that_is_no_number_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "q_loss", lambda q_values, *_: q_values.sum() * float("nan"))
    result = invoke("-o", tmp_path / "out", *TINY)
    assert result.exit_code == 1
    assert "Error: the loss is nan in phase 'agent', step 1 of 4; lower the learning rate" in result.stderr
    assert result.stdout == ""
    assert not any(tmp_path.iterdir())


def test_an_existing_output_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    for flags in ([], ["--overwrite"], ["--resume"]):
        error = failure(main, ["-o", tmp_path / "out", "--sample-images", tmp_path / "samples", *flags])
        assert str(tmp_path / "out") in error
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--data", "letters"], 1, "known: digits"),
        (["--data", "cifar10:nowhere"], 1, "nowhere"),
        (["--data", "folder:nowhere"], 1, "nowhere"),
        (["--data", "cifar10"], 1, "pass cifar10:DIR"),
        (["--widths", "1,2"], 1, "four positive integers"),
        (["--widths", "5,5,5,5"], 1, "do not divide into 4 groups"),
        (["--model", "nowhere:factory"], 1, "nowhere"),
        (["--groups-for", "conv"], 1, "'conv' is not PATTERN=NUMBER"),
        (["--penalty", "nan"], 1, "penalty is nan"),
        (["--penalty-range", "0.5", "0.1"], 1, "Error: penalty range 0.5..0.1: pass two rising numbers"),
        (["--penalty-range", "nan", "0.1"], 1, "Error: penalty range nan..0.1"),
        (["--gamma", "2"], 1, "gamma is 2.0; pass a number between 0 and 1"),
        (["--label-smoothing", "1.5"], 1, "label_smoothing is 1.5"),
        (["--batch-size", "5000"], 1, "batch_size is 5000, but there are 1347 training images; lower it"),
        (["--batch-size", "1"], 1, "batch_size is 1; pass a number of at least 2"),
        (["--agent-rate", "0"], 1, "agent_rate is 0.0; pass a number above 0"),
        (["--rounds", "0"], 1, "rounds is 0; pass a number of at least 1"),
        (["--device", "cuda"], 1, "finds 0 CUDA devices; use --device cpu"),
        (["--device", "gpu"], 1, "device 'gpu' is none; use auto, cpu, cuda"),
        (["--groups", "1"], 2, "--groups"),
        (["--weights", "nowhere.pt"], 2, "belong to a --model"),
        (["--seed", "-1"], 2, "--seed"),
        (["--workers", "-1"], 2, "--workers"),
        (["--save-every", "-1"], 2, "--save-every"),
        (["--penalty-range", "0.1"], 2, "--penalty-range"),
    ],
)
def test_wrong_arguments_are_refused_with_one_message(
    arguments: list[str], exit_code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    result = invoke("-o", tmp_path / "out", *arguments)
    assert result.exit_code == exit_code, result.stderr
    assert words in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert result.stdout == ""
    assert not any(tmp_path.iterdir())


def test_help_shows_the_defaults_without_loading_torch() -> None:
    code = (
        "import sys; from rnp_deploy.tools.train import main; main(['--help'], standalone_mode=False); "
        "print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("False\n")
    text = " ".join(shown.stdout.split())
    for default in ("32,32,64,64", "-0.02, 1.0", "0.004", "500", "30.0", "auto"):
        assert f"[default: {default}" in text, default


def test_a_finished_run_is_not_begun_again_by_resume(tmp_path: Path) -> None:
    success(main, ["-o", tmp_path / "out", *TINY])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    result = success(main, ["-o", tmp_path / "out", *TINY, "--resume"])
    assert f"{tmp_path / 'out'} is finished already" in result.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_logs_that_cannot_be_written_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    words = f"TensorBoard logs cannot be written to {tmp_path / 'file'}"
    assert words in failure(main, ["-o", tmp_path / "out", *TINY, "--tensorboard", tmp_path / "file"])
