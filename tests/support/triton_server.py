"""A real Triton server on a free port, from the wheel ``nvidia-pytriton``; tests skip where it cannot start.

Of the wheel only the server, its Python backend and the backend's stubs are used. Its Python is the one that runs the
tests, in an environment of its own, in which numpy is older: these stubs were built for numpy 1.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

__all__ = ["TritonServer", "triton_server"]

_WHEELS = {"server": "nvidia-pytriton==0.7.0", "numpy": "numpy==1.26.4"}
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_CACHE = Path(__file__).parents[2] / "build" / f"pytriton-0.7.0-python{_PYTHON}"
_START_S = 60.0
_FETCH_S = 100.0
_PROBE_CONFIG = """name: "probe" backend: "python" max_batch_size: 1
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
_PROBE = """import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", array + 1)]) for array in arrays]
"""


@dataclass(frozen=True)
class TritonServer:
    """A server that listens, by HTTP; ``log`` is the file of what it says."""

    url: str
    log: Path

    def get(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of an answer, None where it is empty; a POST where there is a body."""
        request = urllib.request.Request(f"{self.url}/v2/{path}", body, dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as err:
            status, text = err.code, err.read()
        return status, json.loads(text) if text else None

    def infer(
        self, model: str, outputs: Sequence[Mapping[str, Any]] = (), **inputs: np.ndarray
    ) -> tuple[int, dict[str, np.ndarray] | str]:
        """Status, and arrays by name or the error; arrays are sent as they are, and come back as JSON."""
        header = json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "shape": array.shape,
                        "datatype": "FP32",
                        "parameters": {"binary_data_size": array.nbytes},
                    }
                    for name, array in inputs.items()
                ],
                **({"outputs": list(outputs)} if outputs else {}),
            }
        ).encode()
        body = header + b"".join(array.astype(np.float32, copy=False).tobytes() for array in inputs.values())
        status, answer = self.get(
            f"models/{model}/infer", body, {"Inference-Header-Content-Length": str(len(header))}
        )
        if status != 200:
            return status, answer["error"]
        kinds = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}
        return status, {
            tensor["name"]: np.array(tensor["data"], kinds[tensor["datatype"]]).reshape(tensor["shape"])
            for tensor in answer["outputs"]
        }

    def reason(self, model: str) -> str:
        """Why a model is not ready."""
        _, models = self.get("repository/index", b"{}")
        reason = next(entry.get("reason", "") for entry in models if entry["name"] == model)
        return " ".join(reason.partition("\n\nAt:")[0].split())

    def counts(self, model: str) -> tuple[int, int]:
        """Images that were inferred, and executions that took."""
        _, stats = self.get(f"models/{model}/stats")
        (entry,) = stats["model_stats"]
        return entry["inference_count"], entry["execution_count"]


@contextmanager
def triton_server(repository: Path, work: Path) -> Iterator[TritonServer]:
    """Serve a repository while the block runs.

    Args:
        repository: Models that do not load do not stop the server.
        work: An empty folder.
    """
    server, numpy = _unpacked()
    probe = work / "probes" / "probe" / "1"
    probe.mkdir(parents=True)
    (probe / "model.py").write_text(_PROBE)
    (probe.parent / "config.pbtxt").write_text(_PROBE_CONFIG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = f"rnp-{secrets.token_hex(4)}-"
    command = [
        server / "pytriton/tritonserver/bin/tritonserver",
        *("--model-repository", repository, "--model-repository", work / "probes"),
        *("--backend-directory", server / "pytriton/tritonserver/backends"),
        f"--backend-config=python,shm-region-prefix-name={shared}",
        *("--http-address", "127.0.0.1", "--http-port", str(port)),
        *("--allow-grpc=false", "--allow-metrics=false", "--exit-on-error=false", "--exit-timeout-secs=5"),
    ]
    log = work / "tritonserver.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=_environment(work, numpy),
            start_new_session=True,  # so that stubs can be ended with it
        )
    running = TritonServer(f"http://127.0.0.1:{port}", log)
    try:
        _wait(running, process)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for left in Path("/dev/shm").glob(f"{shared}*"):  # by a server that was killed
            left.unlink()


def _unpacked() -> tuple[Path, Path]:
    """The folders of the server and of its numpy, fetched once; skips where there are none for this machine."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("nvidia-pytriton has a Triton server for Linux on x86-64 alone")
    if not _CACHE.is_dir():
        partial = _CACHE.with_name(f".{_CACHE.name}.partial-{secrets.token_hex(4)}")
        try:
            for name, wheel in _WHEELS.items():
                _fetch(wheel, partial / name)
            _place_stub(partial / "server/pytriton/tritonserver")
            if not _CACHE.is_dir():
                partial.rename(_CACHE)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _CACHE / "server", _CACHE / "numpy"


def _fetch(wheel: str, folder: Path) -> None:
    arguments = [
        "install",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-compile",
        "--target",
        folder,
        wheel,
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=_FETCH_S,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{wheel} cannot be fetched within {_FETCH_S:.0f} s")
    if done.returncode:
        pytest.skip(f"{wheel} cannot be fetched: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")


def _place_stub(tritonserver: Path) -> None:
    """Put the stub for this Python where the backend looks for it."""
    stub = tritonserver / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"{_WHEELS['server']} has no stub for Python {_PYTHON}")
    placed = shutil.copy(stub, tritonserver / "backends/python" / stub.name)
    for program in (placed, tritonserver / "bin/tritonserver"):
        Path(program).chmod(0o755)


def _environment(work: Path, numpy: Path) -> dict[str, str]:
    """With this Python's library, and the packages of the tests but for numpy.

    The stub embeds Python: it finds its packages by the first ``python3`` of PATH, and heeds no PYTHONPATH.
    """
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if not (Path(folder) / name).is_file() or ".so" not in name:
        pytest.skip(f"this Python has no shared library in {folder}, which Triton's stub needs")
    venv = work / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    sites = [str(numpy), *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    packages = venv / "lib" / f"python{_PYTHON}" / "site-packages"
    (packages / "tests.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in sites)
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RNP_"))}
    return inherited | {
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        # An empty entry would be the current folder.
        "LD_LIBRARY_PATH": ":".join(
            entry for entry in (folder, *os.environ.get("LD_LIBRARY_PATH", "").split(":")) if entry
        ),
    }


def _wait(server: TritonServer, process: subprocess.Popen[bytes]) -> None:
    """Until it listens; skips where it does not, or a model that does nothing does not work."""
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            server.get("health/live")
            break
        except OSError:
            time.sleep(0.1)
    else:
        lines = [line for line in server.log.read_text(errors="replace").splitlines() if line.strip()]
        pytest.skip("Triton does not start: " + " / ".join(lines[-8:]))
    if server.get("models/probe/ready")[0] != 200:
        pytest.skip(f"Triton's Python backend does not start: {server.reason('probe')}")
    status, answer = server.infer("probe", x=np.ones((1, 1), np.float32))
    if status != 200 or answer["y"] != 2:
        pytest.skip(f"Triton's Python backend does not work here: {answer}")
