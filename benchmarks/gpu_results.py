"""Everything of docs/gpu-results.md in one command, within eight minutes on a datacenter GPU.

1. On any machine with the exporter (extra [export]), beforehand; no GPU is needed:

    python benchmarks/gpu_results.py --prepare DIR           # 34 MB for VGG-16 in fp16, 50 MB for ResNet-18 in fp32

2. On the GPU, which needs numpy, click, rich, pydantic, onnx, a driver, and torch with CUDA or onnxruntime-gpu or
   both, but no network, no installed copy of this project, and no exporter:

    python benchmarks/gpu_results.py --bundle DIR -o OUT

   --backend torch           only this one; may be repeated (torch, onnxruntime, tensorrt)
   --engines ENGINES         TensorRT too: an engine set of DIR/vgg16/bundle that was built on this GPU, with
                             rnp-build DIR/vgg16/bundle -o ENGINES --backend tensorrt --max-batch 64 --opt-batch 64
   --tensorrt-python PYTHON  a Python with TensorRT 8.5.3 (numpy, onnx, click, rich, pydantic): ResNet-18 is built
                             and run there, and compared with the CPU's outputs and decisions; a build
                             that does not end within its limit goes on when this is run again
   --limit-s 480             sections that would begin later are left out, and said to be

A network whose folder is not there is left out: DIR may have one of the two.

Every section is a process of its own with a time limit, and writes each row when it has it: OUT/SECTION.json.
OUT/gpu-results.json and OUT/tables.md are written anew after each section, so that a crash, a hang or the end of
the machine loses the section under way and no more. Running it again with the same OUT measures what is missing
and what failed; an OUT of another machine, device or network is refused.

    python benchmarks/gpu_results.py --device cpu --small -o OUT      # the whole script on the CPU, in a minute or so
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import click

from gpu_tables import tables

HERE = Path(__file__).resolve().parent
BACKENDS = ("torch", "onnxruntime", "tensorrt")
#: Seconds that a section may take: import, opening every branch, and measuring.
LIMITS_S = {"here": 30, "parity": 75, "uniform": 110, "points": 90, "memory": 60, "build": 300}


@dataclass(frozen=True)
class Section:
    """A process to run; ``python`` is another interpreter's, or empty."""

    kind: str
    network: str
    backend: str
    engines: Path | None = None
    python: str = ""

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(
            filter(None, (self.kind, self.network, self.backend, "other-python" * bool(self.python)))
        )


def sections(backends: tuple[str, ...], engines: Path | None, other: str, out: Path) -> Iterator[Section]:
    """In the order in which they matter, were the machine to go away."""
    yield Section("here", "vgg16", "auto")
    used = [name for name in backends if name != "tensorrt" or engines is not None]
    sets = {"tensorrt": engines}
    for kind in ("parity", "uniform", "points", "memory"):
        for name in used:
            yield Section(kind, "vgg16", name, sets.get(name))
    if other:
        built = out / "resnet18-engines"
        for kind in ("here", "build", "parity"):
            yield Section(kind, "resnet18", "auto", built, other)
    for name in used:
        if name != "tensorrt":
            yield Section("parity", "resnet18", name)


def code_folder(out: Path) -> Path:
    """The project as it is imported, for interpreters in which it is not installed."""
    folder = out / "code"
    shutil.rmtree(folder, ignore_errors=True)
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HERE.parent / "rnp_deploy", folder / "rnp_deploy", ignore=leave)
    for part in ("engines", "exporters", "tools"):
        shutil.copytree(HERE.parent / part, folder / "rnp_deploy" / part, ignore=leave)
    return folder


def run_section(
    section: Section, bundle: Path, out: Path, code: Path, options: list[str], seconds: float
) -> str | None:
    """Run one; what went wrong, if something did."""
    command = [section.python or sys.executable, str(HERE / "gpu_sections.py"), section.kind]
    command += [
        str(bundle / section.network),
        str(out / f"{section.name}.json"),
        "--backend",
        section.backend,
    ]
    command += options if section.engines is None else [*options, "--engines", str(section.engines)]
    if section.network == "resnet18":
        command += ["--batches", "4"]
    inherited = "" if section.python else os.environ.get("PYTHONPATH", "")  # of this interpreter's version
    path = os.pathsep.join(filter(None, (str(code), inherited)))
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    except OSError as err:
        return str(err)
    sys.stderr.write(done.stderr[-2000:])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"exit code {done.returncode}: {last}"
    return None


def failed(file: Path) -> bool:
    """Whether a section that was measured has rows that are errors."""
    return any("error" in row for row in json.loads(file.read_text(encoding="utf-8")))


def processor(device: str, code: Path) -> str:
    """What computes: the GPU's name, or the CPU's."""
    ask = {
        "cuda": "from rnp_deploy.engines.cuda_driver import cuda_device; print(cuda_device().name)",
        "cpu": "from rnp_deploy.benchmarking.environment import machine_environment as here; print(here(None)['processor'])",
    }[device]
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, (str(code), inherited)))
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode:
        raise click.ClickException(f"{device} cannot be used: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def claim(out: Path, conditions: dict[str, str | bool]) -> None:
    """Write down what OUT is measured on; raises ClickException where it was begun on something else."""
    file = out / "conditions.json"
    if not file.exists():
        file.write_text(json.dumps(conditions, indent=1) + "\n", encoding="utf-8")
    begun = json.loads(file.read_text(encoding="utf-8"))
    keys = sorted(begun.keys() | conditions.keys())
    other = [key for key in keys if begun.get(key) != conditions.get(key)]
    if other:
        told = ", ".join(f"{key} {begun.get(key)}, now {conditions.get(key)}" for key in other)
        raise click.ClickException(f"{out} was measured with {told}; pass another -o, or delete it")


def report(out: Path, notes: dict[str, str]) -> None:
    """What all sections wrote so far, as one JSON and as tables."""
    results = {}
    for file in sorted(out.glob("*-*.json")):
        if file.name != "gpu-results.json":
            results[file.stem] = json.loads(file.read_text(encoding="utf-8"))
    whole = json.dumps({"sections": results, "notes": notes}, indent=1)
    (out / "gpu-results.json").write_text(whole + "\n", encoding="utf-8")
    (out / "tables.md").write_text(tables(results, notes), encoding="utf-8")


def earlier_notes(out: Path) -> dict[str, str]:
    """What was not measured when this was run before: it is tried again."""
    file = out / "gpu-results.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))["notes"]) if file.exists() else {}


def prepare(folder: Path, *, small: bool) -> None:
    """Make the networks, in a process that may import torch and the exporter."""
    support = os.pathsep.join(
        filter(None, (str(HERE.parent / "tests" / "support"), os.environ.get("PYTHONPATH", "")))
    )
    command = [sys.executable, str(HERE / "gpu_networks.py"), str(folder), *(["--small"] if small else [])]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": support})


def measure(
    bundle: Path,
    out: Path,
    wanted: Iterable[Section],
    device: str,
    small: bool,
    options: list[str],
    seconds: float,
) -> dict[str, str]:
    """Run the sections that OUT lacks, for so many seconds; what went wrong, by section."""
    started = time.monotonic()
    code, notes = code_folder(out), earlier_notes(out)
    manifests = sorted(bundle.glob("*/bundle/manifest.json"))
    if not manifests:
        raise click.ClickException(f"{bundle} has no bundle to measure; make it with --prepare {bundle}")
    hashes = {f"{file.parts[-3]}'s bundle": sha256(file.read_bytes()).hexdigest() for file in manifests}
    claim(out, {"device": device, "on": processor(device, code), "small": small, **hashes})
    for section in wanted:
        if section.kind != "here" and not (bundle / section.network).exists():
            continue
        left = seconds - (time.monotonic() - started)
        file = out / f"{section.name}.json"
        if file.exists() and section.name not in notes and section.kind != "here" and not failed(file):
            continue
        notes.pop(section.name, None)
        problem = "left out: no time" if left < 10 else None
        if problem is None:
            problem = run_section(section, bundle, out, code, options, min(LIMITS_S[section.kind], left))
        if problem is not None:
            notes[section.name] = problem
        click.echo(f"{time.monotonic() - started:6.1f} s  {section.name}: {problem or 'done'}", err=True)
        report(out, notes)
    return notes


@click.command()
@click.option(
    "--prepare", "to_prepare", type=click.Path(path_type=Path), help="Make the networks here, and stop."
)
@click.option("--bundle", type=click.Path(path_type=Path), help="What --prepare made.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("build/gpu-results"), show_default=True
)
@click.option("--backend", "backends", multiple=True, type=click.Choice(BACKENDS), help="Default: all.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option(
    "--engines", type=click.Path(path_type=Path), help="An engine set of TensorRT, built on this GPU."
)
@click.option("--tensorrt-python", default="", help="A Python with TensorRT, for ResNet-18.")
@click.option("--small", is_flag=True, help="Tiny networks and few repeats, to try the script.")
@click.option(
    "--limit-s", type=float, default=480.0, show_default=True, help="Begin nothing after these seconds."
)
def main(
    to_prepare: Path | None, bundle: Path | None, out: Path, backends: tuple[str, ...], device: str,
    engines: Path | None, tensorrt_python: str, small: bool, limit_s: float,
) -> None:  # fmt: skip
    """Measure what OUT does not have yet."""
    started = time.monotonic()
    if to_prepare is not None:
        prepare(to_prepare, small=small)
        return
    out.mkdir(parents=True, exist_ok=True)
    if bundle is None:
        if not small:
            raise click.UsageError("pass --bundle DIR, what --prepare DIR made beforehand")
        bundle = out / "networks"
        if not bundle.exists():
            prepare(bundle, small=True)
    options = ["--device", device]
    options += ["--batches", "4,1", "--repeats", "5", "--seconds", "1"] if small else []
    notes = measure(
        bundle,
        out,
        sections(backends or BACKENDS, engines, tensorrt_python, out),
        device,
        small,
        options,
        limit_s - (time.monotonic() - started),
    )
    click.echo((out / "tables.md").read_text(encoding="utf-8"))
    if any(problem != "left out: no time" for problem in notes.values()):
        raise click.ClickException(f"not all could be measured: {out / 'tables.md'} says what, and why")


if __name__ == "__main__":
    main()
