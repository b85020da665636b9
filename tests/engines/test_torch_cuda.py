"""Torch engines on a GPU; each has a sister on the CPU in test_torch_engine.py or test_torch_parity.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.torch_engine import opener
from rnp_deploy.errors import EngineError

STEM = "stages/00/full.onnx"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU"),
]


@pytest.fixture
def bundle(exported):
    return open_bundle(exported("chain").path)


@pytest.mark.parametrize("name", ["chain", "bottleneck residual", "separable"])
def test_cuda_agrees_with_the_cpu(exported, name):
    case = exported(name)
    bundle = open_bundle(case.path)
    images, options = case.images(6).numpy(), case.options(6).numpy()
    results = {}
    for device in ("cpu", "cuda"):
        with Controller(bundle.manifest, opener(bundle, device)) as controller:
            for _ in range(3):  # computed and captured, then replayed
                decided = controller.run(images, penalty=0.01)
                given = controller.run(images, options=options)
            results[device] = decided, given
    for cpu, cuda in zip(*results.values(), strict=True):
        assert cpu.options.tolist() == cuda.options.tolist()
        np.testing.assert_allclose(cuda.outputs, cpu.outputs, atol=1e-4 * np.abs(cpu.outputs).max())


def test_arrays_of_the_device_are_read_and_written_where_they_are(exported, bundle):
    images = exported("chain").images(2)
    expected = opener(bundle, "cpu")(STEM).run({"images": images.numpy()})["features_1_out"]
    stream = torch.cuda.Stream()
    on_device, out = images.cuda(), torch.zeros(expected.shape, device="cuda")
    torch.cuda.synchronize()
    call = opener(bundle, "cuda", stream=stream.cuda_stream)(STEM).bind(
        {"images": on_device}, {"features_1_out": out}
    )
    for scale in (1, 0, 1):
        with torch.cuda.stream(stream):
            on_device.copy_(images * scale)
        call()
    stream.synchronize()
    np.testing.assert_allclose(out.cpu().numpy(), expected, atol=1e-4)


def test_memory_is_flat_over_10000_replays(exported, bundle):
    images = exported("chain").images(1).numpy()
    with Controller(bundle.manifest, opener(bundle, "cuda")) as controller:
        for _ in range(100):
            controller.run(images)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        for _ in range(10_000):
            controller.run(images)
        torch.cuda.synchronize()
        assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def test_two_controllers_in_two_threads(exported, bundle):
    images, options = exported("chain").images(4).numpy(), exported("chain").options(4).numpy()

    def outputs(controller):
        return [controller.run(images, options=options).outputs for _ in range(50)]

    with (
        Controller(bundle.manifest, opener(bundle, "cuda")) as one,
        Controller(bundle.manifest, opener(bundle, "cuda")) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        made = [array for each in pool.map(outputs, (one, two)) for array in each]
        alone = outputs(one)[0]
    assert all(np.array_equal(array, alone) for array in made)


def test_too_little_memory_is_told(exported, bundle):
    engine = opener(bundle, "cuda")(STEM)
    shape = exported("chain").network.input_shape
    torch.cuda.set_per_process_memory_fraction(1e-3)
    try:
        with pytest.raises(EngineError, match=f"{STEM}.*no memory left.*memory_budget_bytes"):
            engine.run({"images": np.zeros((50_000, *shape), np.float32)})
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.run({"images": np.zeros((1, *shape), np.float32)})
