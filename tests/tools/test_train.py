"""rnp-train, end to end on a tiny scale."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from rnp_deploy.datasets import load_data
from rnp_deploy.network.checkpoint import load_checkpoint
from rnp_deploy.preprocessing import read_images
from rnp_deploy.tools.train import main
from rnp_deploy.training import evaluate

TINY = [
    "--widths",
    "4,4,4,4",
    "--groups",
    "2",
    "--backbone-epochs",
    "1",
    "--random-epochs",
    "1",
    "--rounds",
    "1",
]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_checkpoint_holds_what_the_report_says(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    result = invoke("-o", tmp_path / "out", *TINY, "--seed", 3, "--json", "--sample-images", samples)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["checkpoint"] == str(tmp_path / "out")
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.calibration is not None
    assert checkpoint.preprocessing is not None
    assert report["calibration"] == checkpoint.calibration.model_dump(mode="json")
    data = load_data("digits")
    images, labels = map(torch.from_numpy, data.test.read(np.arange(len(data.test))))
    assert evaluate(checkpoint.network, images, labels) == checkpoint.calibration.points[0]
    assert checkpoint.classes == data.classes
    images = read_images(sorted(samples.iterdir()), checkpoint.preprocessing)
    assert (images == data.test.read(np.arange(12))[0]).all()


def test_the_report_is_one_line_and_progress_is_elsewhere(tmp_path: Path) -> None:
    result = invoke("-o", tmp_path / "out", *TINY)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("test accuracy ")
    assert result.stdout.endswith("450 held-out images)\n")
    assert result.stdout.count("\n") == 1
    assert "agent and backbone: 220/220" in result.stderr
    again = invoke("-o", tmp_path / "out", *TINY, "--overwrite")
    assert again.stdout == result.stdout


def test_an_existing_output_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    for flags in ([], ["--overwrite"]):
        result = invoke("-o", tmp_path / "out", "--sample-images", tmp_path / "samples", *flags)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert str(tmp_path / "out") in result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--data", "letters"], 1, "known: digits"),
        (["--widths", "1,2"], 1, "four positive integers"),
        (["--widths", "5,5,5,5"], 1, "do not divide into 4 groups"),
        (["--penalty", "nan"], 1, "penalty is nan"),
        (["--rounds", "0"], 2, "--rounds"),
        (["--groups", "1"], 2, "--groups"),
    ],
)
def test_wrong_arguments_are_refused_with_one_message(
    arguments: list[str], exit_code: int, words: str, tmp_path: Path
) -> None:
    result = invoke("-o", tmp_path / "out", *arguments)
    assert result.exit_code == exit_code
    assert words in result.stderr
    assert not any(tmp_path.iterdir())


def test_help_shows_the_defaults_without_loading_torch() -> None:
    code = "import sys, rnp_deploy.tools.train; print('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout == "False\n"
    assert "[default: 32,32,64,64]" in invoke("--help").stdout
