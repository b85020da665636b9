"""Engines are opened once, and the least recently used let go for a budget."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles import small_manifest
from rnp_deploy import Controller
from rnp_deploy.engine_cache import EngineCache
from rnp_deploy.engines.fake import FakeEngine
from rnp_deploy.errors import EngineError, InputError
from small_network import AGENT, Network, decided, expected_outputs, fused_plan, images_of

WEIGHTS = {"a": 10, "b": 20, "c": 30, "d": 40, "agent": 0}


class Opened:
    """Engines opened and released, by path in order."""

    def __init__(self, budget=None, weights=WEIGHTS):
        self.paths: list[str] = []
        self.released: list[FakeEngine] = []
        self.broken: set[str] = set()
        self.cache = EngineCache(self.open, weights, budget, self.released.append)

    def open(self, path):
        self.paths.append(path)
        if path in self.broken:
            raise EngineError(f"{path} cannot be loaded")
        return FakeEngine(dict)


def test_an_engine_is_opened_once_and_given_to_all():
    opened = Opened()
    assert opened.cache.get("a") is opened.cache.get("a")
    assert opened.cache.get("b") is not opened.cache.get("a")
    assert opened.paths == ["a", "b"]
    assert opened.cache.loaded() == {"a": 10, "b": 20}


def test_many_threads_at_once_open_it_once():
    opened, got, barrier = Opened(), [], threading.Barrier(8)
    fast = opened.open

    def slowly(path):
        time.sleep(0.01)
        return fast(path)

    opened.cache = EngineCache(slowly, WEIGHTS, None, opened.released.append)

    def work():
        barrier.wait(10)
        got.extend(opened.cache.get(path) for path in "abcd")

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert sorted(opened.paths) == list("abcd")
    assert len({id(engine) for engine in got}) == 4
    assert len(got) == 32


@pytest.mark.parametrize(
    ("asked_for", "held", "evictions"),
    [
        ("abc", "abc", 0),
        ("abcd", "d", 3),
        ("abd", "bd", 1),
        ("abad", "ad", 1),
        ("cba", "abc", 0),
        ("cbad", "ad", 2),
        ("cbcd", "d", 2),
        ("aaad", "ad", 0),
        ("abcabd", "bd", 2),
    ],
)
def test_the_least_recently_used_go_first_and_no_more_than_need_be(asked_for, held, evictions):
    opened = Opened(budget=60)
    for path in asked_for:
        opened.cache.get(path)
    assert "".join(sorted(opened.cache.loaded())) == held
    assert opened.cache.evictions == len(opened.released) == evictions


def test_an_evicted_engine_is_told_of_but_not_closed_and_opened_again_when_needed():
    opened = Opened(budget=30)
    first = opened.cache.get("a")
    opened.cache.get("c")
    assert opened.released == [first]
    assert not first.closed, "a thread may be about to run it"
    assert opened.cache.get("a") is not first
    assert opened.paths == ["a", "c", "a"]


def test_an_evicted_engine_is_freed_once_nobody_runs_it():
    opened = Opened(budget=30)
    cache = EngineCache(opened.open, WEIGHTS, 30, lambda engine: None)
    gone = weakref.ref(cache.get("a"))
    cache.get("c")
    gc.collect()
    assert gone() is None


def test_an_engine_larger_than_the_budget_is_opened_all_the_same():
    opened = Opened(budget=25)
    opened.cache.get("a")
    opened.cache.get("d")
    assert opened.cache.loaded() == {"d": 40}
    opened.cache.get("b")
    assert opened.cache.loaded() == {"b": 20}
    assert opened.cache.evictions == 2


def test_engines_without_weights_stay():
    opened = Opened(budget=30)
    for path in ("agent", "unlisted", "c", "b", "c", "d"):
        opened.cache.get(path)
    assert opened.cache.loaded() == {"agent": 0, "unlisted": 0, "d": 40}
    assert opened.cache.evictions == 3
    assert opened.paths == ["agent", "unlisted", "c", "b", "c", "d"]


@given(st.lists(st.sampled_from(sorted(WEIGHTS)), max_size=20), st.integers(1, 120))
def test_no_more_is_held_than_the_budget_or_the_one_asked_for_and_the_rest_is_what_was_used_last(
    asked_for, budget
):
    opened = Opened(budget)
    for path in asked_for:
        opened.cache.get(path)
        held = opened.cache.loaded()
        assert path in held
        assert sum(held.values()) <= max(budget, max(held.values()))
    last = {path: i for i, path in enumerate(asked_for)}
    held = opened.cache.loaded()
    weighty = [path for path in last if WEIGHTS[path]]
    newest = sorted(weighty, key=lambda path: -last[path])[: sum(1 for path in held if WEIGHTS[path])]
    assert set(newest) == {path for path in held if WEIGHTS[path]}
    assert opened.cache.evictions == len(opened.paths) - len(held)


def test_an_engine_that_cannot_be_opened_is_not_kept():
    opened = Opened(budget=60)
    opened.broken = {"a"}
    with pytest.raises(EngineError, match="a cannot be loaded"):
        opened.cache.get("a")
    assert opened.cache.loaded() == {}
    opened.broken.clear()
    opened.cache.get("a")
    assert opened.paths == ["a", "a"]


@pytest.mark.parametrize(
    ("budget", "order", "held"),
    [
        (None, "dcba", "abcd"),
        (100, "dcba", "abcd"),
        (99, "dcba", "bcd"),
        (70, "dcba", "cd"),
        (69, "dcba", "d"),
        (60, "abcd", "abc"),
        (39, "dcba", ""),
    ],
)
def test_opening_ahead_goes_in_order_and_stops_where_the_budget_ends(budget, order, held):
    opened = Opened(budget)
    opened.cache.open_within_budget(order)
    assert sorted(opened.cache.loaded()) == list(held)
    assert opened.cache.evictions == 0
    assert opened.paths == list(order[: len(held)])


def test_opening_ahead_counts_what_is_open_only_once():
    opened = Opened(budget=40)
    opened.cache.get("c")
    opened.cache.open_within_budget(["c", "agent", "a"])
    assert opened.cache.loaded() == {"a": 10, "agent": 0, "c": 30}


def test_close_closes_and_tells_of_each_engine_and_may_come_twice():
    opened = Opened()
    engines = [opened.cache.get(path) for path in "ab"]
    opened.cache.close()
    opened.cache.close()
    assert all(engine.closed for engine in engines)
    assert opened.released == engines
    assert opened.cache.loaded() == {}
    assert opened.cache.evictions == 0


@pytest.mark.parametrize("plan", [None, fused_plan()], ids=["bundle", "fused"])
def test_an_engine_that_is_let_go_while_another_thread_runs_it_goes_on(plan):
    network, entered, go_on, results = Network(), threading.Event(), threading.Event(), []
    stem = network.stem

    def slow_for_one(name, feeds):
        if feeds["images"].max() == 5:
            entered.set()
            assert go_on.wait(10)
        return stem(name, feeds)

    network.stem = slow_for_one
    with Controller(small_manifest(), network.open, plan=plan, memory_budget_bytes=32) as controller:
        running = threading.Thread(target=lambda: results.append(controller.run(images_of([5]))))
        running.start()
        assert entered.wait(10)
        stem_engine = network.engines["s0/full.onnx"]
        controller.run(images_of([2]))
        assert network.opened.count("s0/full.onnx") == 1
        assert controller.memory().evictions > 0
        go_on.set()
        running.join(10)
        assert not stem_engine.closed
        assert results[0].outputs.tolist() == expected_outputs([5], decided([5]))
        assert controller.memory().weight_bytes <= 32
        controller.run(images_of([0]))
        assert network.opened.count("s0/full.onnx") == 2


def test_a_controller_lets_go_what_its_runs_used_least_recently():
    network = Network()
    with Controller(small_manifest(), network.open, memory_budget_bytes=60) as controller:
        controller.run(images_of([0]))  # 32 + 8 + 4
        controller.run(images_of([1]))  # the same stem, 16 + 8: the branches of image 0 go
        assert network.opened.count("s0/full.onnx") == 1
        memory = controller.memory()
        assert (memory.weight_bytes, memory.evictions) == (32 + 16 + 8 + 4, 1)
        controller.run(images_of([0, 1, 2, 3]))
        assert controller.memory().weight_bytes <= 60
        assert all(network.opened.count(path) == 1 for path in AGENT)


def test_a_bound_call_counts_as_a_use():
    network = Network()
    with Controller(small_manifest(), network.open, memory_budget_bytes=60) as controller:
        for options in ([[1, 1]], [[1, 2]], [[1, 1]]):  # 32 + 8 + 4, and 8 of which the use is older
            controller.run(images_of([0]), options=options)
        evicted = []
        release = controller._engines._on_release
        controller._engines._on_release = lambda engine: (evicted.append(engine), release(engine))
        controller.run(images_of([0]), options=[[2, 1]])  # 16 + 8: what [1, 2] took goes first
        assert [engine is network.engines["s2/1-2.onnx"] for engine in evicted][:1] == [True]
        assert network.engines["s0/full.onnx"] not in evicted


def test_preloading_opens_the_most_used_first_and_stops_at_the_budget():
    network = Network()
    with Controller(small_manifest(), network.open, memory_budget_bytes=45) as controller:
        controller.preload()
        assert network.opened[:3] == ["s0/full.onnx", *AGENT]
        assert network.opened[3:] == ["s1/1.onnx"]
        assert controller.memory().evictions == 0


def test_preloading_what_is_common_needs_a_calibration():
    network = Network()
    with (
        Controller(small_manifest(), network.open) as controller,
        pytest.raises(InputError, match="calibration"),
    ):
        controller.preload(common_only=True)
    assert network.opened == []
