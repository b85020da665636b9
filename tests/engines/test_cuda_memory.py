"""Device memory, on a driver of plain Python that works lazily and checks every address."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_cuda import use_fake_cuda
from rnp_deploy.engines.cuda_driver import cuda_device, driver_call
from rnp_deploy.engines.cuda_memory import CudaMemory
from rnp_deploy.errors import DeviceError

F32 = np.dtype(np.float32)


@pytest.fixture
def cuda(monkeypatch):
    return use_fake_cuda(monkeypatch)


@pytest.fixture
def memory(cuda):
    memory = CudaMemory()
    with memory.turn():
        yield memory


def on_device(memory, values):
    array = memory.empty(values.shape, values.dtype)
    memory.write(array, values)
    return array


def test_the_device_is_described(cuda):
    device = cuda_device()
    assert (device.name, device.compute_capability, device.multiprocessors) == ("NVIDIA Stand-in", "8.6", 108)
    assert (device.memory_bytes, device.driver_cuda) == (2**30, "13.0")


def test_values_come_back(memory):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    array = on_device(memory, values)
    assert memory.to_host(array).tolist() == values.tolist()
    memory.write(array, 0.5)
    assert memory.to_host(array).tolist() == np.full((2, 3, 4), 0.5).tolist()


def test_values_of_the_device_are_copied_there(memory):
    array = memory.empty((4,), F32)
    memory.write(array, on_device(memory, np.arange(4, dtype=np.float32)))
    assert memory.to_host(array).tolist() == [0, 1, 2, 3]


def test_what_was_written_may_be_written_over_at_once(memory):
    values = np.ones(4, np.float32)
    array = on_device(memory, values)
    values[:] = 9
    assert memory.to_host(array).tolist() == [1, 1, 1, 1]


def test_views_rows_and_shapes_lie_on_the_same_memory(memory):
    raw = on_device(memory, np.arange(64, dtype=np.uint8))
    array = raw[:48].view(F32).reshape((3, 4))
    expected = np.arange(48, dtype=np.uint8).view(np.float32).reshape(3, 4)
    assert len(array) == 3
    assert memory.to_host(array[1:3]).tolist() == expected[1:3].tolist()
    assert array.__cuda_array_interface__["data"] == (raw.pointer, False)
    assert array.__cuda_array_interface__["typestr"] == "<f4"
    with pytest.raises(ValueError, match="neighbouring"):
        array[::2]
    with pytest.raises(ValueError, match="cannot take shape"):
        array.reshape((5, 5))


def test_host_arrays_stay_as_they_are(memory):
    values = np.ones(3)
    assert memory.to_host(values) is values


@given(st.data())
def test_rows_are_copied_as_numpy_does(data):
    with pytest.MonkeyPatch.context() as patch:
        use_fake_cuda(patch)
        memory = CudaMemory()
        rows = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=7))
        target_rows = data.draw(st.permutations(range(7)).map(lambda p: p[: len(rows)]))
        source, target = np.random.default_rng(0).random((2, 7, 3), np.float32)
        expected = target.copy()
        expected[target_rows] = source[rows]
        with memory.turn():
            here, there = on_device(memory, source), on_device(memory, target)
            memory.copy_rows(here, np.array(rows), there, np.array(target_rows))
            assert memory.to_host(there).tolist() == expected.tolist()


def test_neighbours_are_one_copy(memory, cuda):
    here, there = (on_device(memory, np.zeros((8, 2), np.float32)) for _ in range(2))
    memory.synchronise()
    memory.copy_rows(here, np.array([2, 3, 4, 6]), there, np.arange(4))
    assert len(cuda._queue) == 2


def test_freed_memory_is_used_again(memory, cuda):
    first = memory.empty((100,), F32)
    pointer = first.pointer
    del first
    gc.collect()
    assert memory.empty((90,), F32).pointer == pointer
    assert memory.empty((90,), F32).pointer == pointer
    assert cuda.allocations == 1


def test_other_row_counts_take_blocks_that_are_free(memory, cuda):
    for rows in [*range(33, 65)] * 3:
        memory.empty((rows, 100), F32)
    assert cuda.allocations <= 2


def test_a_view_holds_the_memory(memory):
    part = memory.empty((100,), F32)[10:20]
    gc.collect()
    assert memory.empty((100,), F32).pointer != part.pointer - 40


def test_kept_blocks_are_given_back_before_memory_is_short(monkeypatch):
    cuda = use_fake_cuda(monkeypatch, limit_bytes=4096)
    memory = CudaMemory()
    with memory.turn():
        del [memory.empty((2048,), np.dtype(np.uint8)) for _ in range(2)][:]
        gc.collect()
        assert cuda.used_bytes == 4096
        large = memory.empty((4096,), np.dtype(np.uint8))
        assert cuda.used_bytes == 4096
        with pytest.raises(DeviceError, match=r"cuMemAlloc_v2 failed: out of memory.*branches='outputs'"):
            memory.empty((1,), np.dtype(np.uint8))
        assert len(large) == 4096


def test_all_memory_is_given_back_at_the_end(cuda):
    memory = CudaMemory()
    arrays = [memory.empty((10,), F32), memory.host_empty((10,), F32)]
    assert cuda.blocks
    assert cuda.pinned
    del arrays, memory
    gc.collect()
    assert not cuda.blocks
    assert not cuda.pinned


def test_pinned_memory_lives_as_long_as_its_array(memory, cuda):
    array = memory.host_empty((4,), F32)
    view = array.reshape(2, 2)[1:]
    del array
    gc.collect()
    assert cuda.pinned
    view[:] = 3
    del view
    gc.collect()
    assert not cuda.pinned


def test_a_graph_repeats_what_was_captured(memory, cuda):
    here, there = on_device(memory, np.zeros(4, np.float32)), memory.empty((4,), F32)
    memory.synchronise()
    launch = memory.captured(lambda: memory.copy_rows(here, np.arange(4), there, np.arange(4)))
    for value in (1.0, 2.0):
        memory.write(here, value)
        launch()
        assert memory.to_host(there).tolist() == [value] * 4
    assert len(cuda.graphs) == 1
    del launch
    gc.collect()
    assert not cuda.graphs


def test_a_capture_that_fails_leaves_the_stream_usable(memory):
    def work():
        raise DeviceError("no")

    with pytest.raises(DeviceError, match="no"):
        memory.captured(work)
    assert memory.to_host(on_device(memory, np.ones(2, np.float32))).tolist() == [1, 1]


def computing(cuda, ms):
    def work():
        cuda.device_ms += ms

    cuda.enqueue(77, work)


def test_marks_time_the_work_between_them(memory, cuda):
    computing(cuda, 100.0)
    marks = [memory.mark()]
    for ms in (3.0, 0.25):
        computing(cuda, ms)
        marks.append(memory.mark())
    assert memory.elapsed_ms(marks[1], marks[2]) == 0.25
    assert memory.elapsed_ms(marks[0], marks[2]) == 3.25
    assert memory.elapsed_ms(marks[0], marks[0]) == 0.0


def test_a_timer_times_what_the_stream_does_meanwhile(cuda):
    memory = CudaMemory()
    computing(cuda, 100.0)
    elapsed_ms = memory.timer()
    computing(cuda, 3.0)
    assert elapsed_ms() == 3.0


def test_events_of_marks_that_are_gone_are_used_again_and_given_back_at_the_end(cuda):
    memory = CudaMemory()
    with memory.turn():
        for _ in range(5):
            first = memory.mark()
            computing(cuda, 2.0)
            assert memory.elapsed_ms(first, memory.mark()) == 2.0
            del first
            gc.collect()
        assert len(cuda.events) == 2
        held = memory.mark()
        computing(cuda, 1.0)
        assert memory.elapsed_ms(held, memory.mark()) == 1.0
    del memory
    gc.collect()
    assert cuda.events
    del held
    gc.collect()
    assert not cuda.events


def test_one_thread_at_a_time_has_its_turn(cuda):
    memory = CudaMemory()
    order = []

    def other():
        with memory.turn():
            order.append("other")

    with memory.turn():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_a_lost_device_is_a_clear_error(memory, cuda):
    array = on_device(memory, np.ones(2, np.float32))
    cuda.lost = True
    with pytest.raises(DeviceError, match="unspecified launch failure"):
        memory.to_host(array)
    cuda.lost = False


def test_a_function_the_driver_lacks_is_a_clear_error(cuda):
    with pytest.raises(DeviceError, match="has no cuMissing: it is too old"):
        driver_call("cuMissing")


def test_a_machine_without_a_driver_says_so(monkeypatch):
    from rnp_deploy.engines import cuda_driver

    cuda_driver._library.cache_clear()
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(DeviceError, match="no NVIDIA driver here"):
        cuda_device()
    cuda_driver._library.cache_clear()
