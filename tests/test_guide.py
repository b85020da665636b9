"""docs/your-network.md runs as it stands."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

from commands import success
from torchvision_models import torchvision

GUIDE = Path(__file__).parents[1] / "docs" / "your-network.md"


def test_guide_runs(tmp_path, monkeypatch):
    assert torchvision.models
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, object] = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, str(GUIDE), "exec"), names)  # what a reader would do
            continue
        for line in block.splitlines():
            command, *arguments = shlex.split(line)
            module = import_module(f"rnp_deploy.tools.{command.removeprefix('rnp-')}")
            success(module.main, arguments)
    assert {"resnet18-bundle", "from-the-shell", "mixed", "trained"} <= {
        path.name for path in tmp_path.iterdir()
    }
    cheapest, whole = names["cheapest"], names["as_trained"]
    assert (cheapest.macs / whole.macs).round(2).tolist() == [0.31] * 4
