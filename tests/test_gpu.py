"""Every backend beside the torch reference, for long, in threads, short of memory, and on a lost device.

``make test-gpu`` runs these on CUDA; the ordinary suite runs the same ones on the CPU, and where a driver is needed
on one of plain Python. What is for CUDA awaits its first run on hardware.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from every_backend import CPU, CUDA, MAX_BATCH, STAND_IN, engines_for, full_memory, why_not
from lost_device import CLEAN, errors_of_a_lost_device
from rnp_deploy.errors import EngineError
from rnp_deploy.exporters import export_bundle

NAMES = ["chain", "bottleneck residual"]
#: Largest absolute error ÷ largest absolute output; and the share of decisions that are the reference's.
TOLERANCES = {"fp32": (1e-4, 1.0), "fp16": (2e-2, 0.95)}
BATCH = 32
RUNS = {"cpu": 800, "cuda": 10_000}
#: What may be taken in all these runs, once a tenth of them is done: allocators round up, the stand-in does not.
GROWTH_BYTES = {"host": 2**23, "device": 2**22, "stand-in": 2**16}

each_backend = pytest.mark.parametrize("backend", [*CPU, *STAND_IN, *CUDA])
each_real_backend = pytest.mark.parametrize("backend", [*CPU, *CUDA])
each_device = pytest.mark.parametrize("backend", [*STAND_IN, *CUDA])
each_precision = pytest.mark.parametrize("precision", TOLERANCES)
each_network = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="session")
def engines(exported, tmp_path_factory):
    """Name, precision and backend → what the backend loads; each is made once."""
    made, folder = {}, tmp_path_factory.mktemp("gpu")

    def make(name, precision, backend):
        reason = why_not(backend)
        if reason:
            pytest.skip(reason)
        opset = 17 if backend.flavor == "tensorrt" else None  # all that TensorRT 8.5 reads
        usual = exported(name).path if (precision, opset) == ("fp32", None) else None
        bundle = made.setdefault((name, precision, opset), usual)
        if bundle is None:
            bundle = made[name, precision, opset] = folder / f"{name}-{precision}-{opset}"
            export_bundle(exported(name).network, bundle, precision=precision, opset=opset, verify=0)
        return engines_for(backend, bundle, folder / f"{name}-{precision}-{backend.flavor}")

    return make


@pytest.fixture
def load(exported, engines, monkeypatch):
    """Like ``engines``, and loads them; the stand-in's driver is the controller's ``cuda``."""
    loaded = []

    def make(name, precision, backend):
        path = engines(name, precision, backend)
        cuda = backend.stand_in_for_cuda(monkeypatch) if backend.stand_in else None
        loaded.append(backend.load(path))
        return loaded[-1], exported(name), cuda

    yield make
    for controller in loaded:
        controller.close()


def deviation(got, expected):
    assert got.shape == expected.shape
    return np.abs(got - expected.numpy()).max() / expected.abs().max().item()


@each_network
@each_precision
@each_backend
def test_given_options_agree_with_the_masked_reference(backend, precision, name, load):
    controller, case, _ = load(name, precision, backend)
    for batch in (1, 7, 1, 7):  # the later ones run what the first ones bound and captured
        images, options = case.images(batch, batch), case.options(batch, batch)
        got = controller.run(images.numpy(), options=options.numpy())
        with torch.no_grad():
            assert deviation(got.outputs, case.network.run(images, options)) <= TOLERANCES[precision][0]
        assert got.macs.tolist() == case.network.macs(options).tolist()


@each_network
@each_precision
@each_backend
def test_the_agent_decides_as_in_torch(backend, precision, name, load):
    controller, case, _ = load(name, precision, backend)
    tolerance, agreement = TOLERANCES[precision]
    images = case.images(BATCH)
    with torch.no_grad():
        expected = case.network(images)[1]
    for policy in ("regroup", "serial", "regroup"):
        got = controller.run(images.numpy(), policy=policy)
        taken = torch.from_numpy(got.options)
        with torch.no_grad():
            assert deviation(got.outputs, case.network.run(images, taken)) <= tolerance
        assert (taken == expected).double().mean().item() >= agreement


@each_backend
def test_memory_is_flat_over_many_runs(backend, load):
    controller, case, _ = load("chain", "fp32", backend)
    images = case.images(4).numpy()
    paths = [case.options(4, seed).numpy() for seed in range(8)]
    runs, used = RUNS["cpu" if backend.stand_in else backend.device], []
    for i in range(runs):
        batch = 1 + i % 4
        controller.run(images[:batch], options=None if i % 2 else paths[i % 8][:batch])
        if i % (runs // 10) == 0:
            used.append(backend.used_bytes())
    for where, before in used[1].items():
        allowed = GROWTH_BYTES["stand-in" if backend.stand_in and where == "device" else where]
        assert max(after[where] for after in used[1:]) - before <= allowed, (where, used)


@each_real_backend
def test_two_controllers_in_two_threads(backend, load, engines):
    controller, case, _ = load("chain", "fp32", backend)
    images = [case.images(3, seed) for seed in range(4)]
    with torch.no_grad():
        expected = [case.network(batch)[0] for batch in images]
    right = []
    with backend.load(engines("chain", "fp32", backend)) as other:

        def run(mine):
            for i in range(40):
                got = mine.run(images[i % 4].numpy())
                right.append(deviation(got.outputs, expected[i % 4]) <= TOLERANCES["fp32"][0])

        threads = [
            threading.Thread(target=run, args=(mine,)) for mine in (controller, other, controller, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert right == [True] * 160


@each_device
def test_short_memory_is_one_clear_error_and_passes(backend, load):
    controller, case, _ = load("chain", "fp32", backend)
    images, options = case.images(MAX_BATCH), case.options(MAX_BATCH)
    controller.run(images[:1].numpy(), options=options[:1].numpy())
    with full_memory(), pytest.raises(EngineError, match=r"memory.*(smaller|memory_budget_bytes)"):
        controller.run(images.numpy(), options=options.numpy())
    got = controller.run(images[:4].numpy(), options=options[:4].numpy())
    with torch.no_grad():
        assert deviation(got.outputs, case.network.run(images[:4], options[:4])) <= TOLERANCES["fp32"][0]


@each_device
def test_a_lost_device_is_a_clear_error_every_time(backend, load, engines):
    if not backend.stand_in:  # a context cannot be had back, so in a process of its own
        script = Path(__file__).parent / "support" / "lost_device.py"
        command = [sys.executable, str(script), str(engines("chain", "fp32", backend)), backend.backend]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ})
        assert done.stdout.endswith(CLEAN), done
        return
    controller, _, cuda = load("chain", "fp32", backend)
    said = errors_of_a_lost_device(controller, lambda: setattr(cuda, "lost", True))
    cuda.lost = False
    assert len(said) == 2
    assert all("launch failure" in words for words in said)
