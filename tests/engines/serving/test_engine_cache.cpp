#include "engine_cache.hpp"

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <thread>

#include "errors.hpp"
#include "fake_backend.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

// Engines "a", "b", … of so many bytes.
FakeNetwork network_of(const std::vector<std::int64_t>& weight_bytes) {
  FakeNetwork network;
  Step step;
  for (std::size_t i = 0; i < weight_bytes.size(); ++i) {
    Piece piece;
    piece.file = std::string(1, static_cast<char>('a' + i));
    piece.weight_bytes = weight_bytes[i];
    step.pieces.push_back(piece);
  }
  network.plan.steps.push_back(step);
  return network;
}

struct Fixture {
  explicit Fixture(const std::vector<std::int64_t>& weight_bytes, std::uint64_t budget = 0)
      : backend(network_of(weight_bytes)), cache(backend.network.plan, backend, budget, [this] { ++releases; }) {}

  std::shared_ptr<Engine> get(const std::string& file) { return cache.get(cache.file_of(file)); }
  MemoryReport report() const {
    MemoryReport report;
    cache.report(report);
    return report;
  }

  int releases = 0;
  FakeBackend backend;
  EngineCache cache;
};

using Files = std::vector<std::string>;

}  // namespace

TEST_CASE("Each engine is opened once, when first needed") {
  Fixture fixture({10, 20, 30});
  const auto first = fixture.get("b");
  CHECK(fixture.get("b") == first);
  fixture.get("a");
  CHECK(fixture.backend.opened_files() == Files{"b", "a"});
  CHECK(fixture.report().engines == 2);
  CHECK(fixture.report().engines_in_all == 3);
  CHECK(fixture.report().weight_bytes == 30);
  CHECK(fixture.report().evictions == 0);
  CHECK(!fixture.cache.evicts());
}

TEST_CASE("Under a budget the least recently used engine is let go") {
  Fixture fixture({10, 10, 10, 25}, 20);
  fixture.get("a");
  fixture.get("b");
  fixture.get("a");
  CHECK(fixture.releases == 0);
  fixture.get("c");
  CHECK(fixture.releases == 1);
  fixture.get("a");
  CHECK(fixture.backend.opened_files() == Files{"a", "b", "c"});
  CHECK(fixture.report().evictions == 1);
  fixture.get("d");  // larger than the budget, and needed
  CHECK(fixture.report().evictions == 3);
  CHECK(fixture.report().weight_bytes == 25);
  CHECK(fixture.backend.engines == 1);
}

TEST_CASE("Engines without weights are not let go") {
  Fixture fixture({0, 10, 10}, 10);
  fixture.get("a");
  fixture.get("b");
  fixture.get("c");
  fixture.get("a");
  CHECK(fixture.backend.opened_files() == Files{"a", "b", "c"});
}

TEST_CASE("An engine in use stays until it is done") {
  Fixture fixture({10, 10}, 10);
  auto held = fixture.get("a");
  fixture.get("b");
  CHECK(fixture.backend.engines == 2);
  held.reset();
  CHECK(fixture.backend.engines == 1);
}

TEST_CASE("An engine that could not be opened is tried again") {
  Fixture fixture({10, 10}, 10);
  fixture.backend.failing_file = "a";
  CHECK(error_of([&] { fixture.get("a"); }) == "engine: a cannot be opened");
  CHECK(fixture.report().weight_bytes == 0);
  fixture.backend.failing_file.clear();
  CHECK(fixture.get("a") != nullptr);
}

TEST_CASE("Engines are opened ahead until the next would evict another") {
  Fixture fixture({10, 10, 10, 5}, 25);
  fixture.cache.open_within_budget({"c", "c", "a", "b", "d"});
  CHECK(fixture.backend.opened_files() == Files{"c", "a"});
  CHECK(fixture.report().evictions == 0);
  Fixture free({10, 10, 10});
  free.cache.open_within_budget({"c", "a", "b"});
  CHECK(free.report().engines == 3);
}

TEST_CASE("While one engine is opened, others can be had, and it is opened once") {
  Fixture fixture({10, 10}, 0);
  fixture.backend.slow_file = "a";
  fixture.get("b");
  std::atomic<bool> opened{false};
  std::thread slow([&] {
    fixture.get("a");
    opened = true;
  });
  std::thread same([&] { fixture.get("a"); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  fixture.get("b");
  CHECK(!opened);
  slow.join();
  same.join();
  CHECK(fixture.backend.opened_files() == Files{"b", "a"});
}

TEST_CASE("Engines that are opened at once keep the budget") {
  Fixture fixture({10, 10}, 10);
  fixture.backend.slow_file = kEveryFile;
  std::thread other([&] { fixture.get("a"); });
  fixture.get("b");
  other.join();
  CHECK(fixture.report().weight_bytes == 10);
  CHECK(fixture.report().evictions == 1);
}

TEST_CASE("Many threads keep the budget") {
  Fixture fixture({10, 10, 10, 10}, 20);
  std::vector<std::thread> threads;
  for (int n = 0; n < 4; ++n) {
    threads.emplace_back([&, n] {
      for (int i = 0; i < 500; ++i) fixture.get(std::string(1, static_cast<char>('a' + (i * (n + 1)) % 4)));
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(fixture.report().weight_bytes <= 20);
  CHECK(fixture.backend.engines <= 2);
  CHECK(fixture.backend.opened_files().size() == fixture.report().evictions + fixture.report().engines);
}
