#include "rnp/controller.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <random>

#include "errors.hpp"
#include "random_networks.hpp"
#include "small_network.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

// A controller over a fake backend, and what is asked of it.
struct Fixture {
  explicit Fixture(const FakeNetwork& network = small_network(), bool on_device = false, std::size_t most = 0,
                   ControllerOptions options = {})
      : backend(std::make_shared<FakeBackend>(network, on_device, most)),
        controller(Package::in_memory(network.manifest, network.plan), backend, std::move(options)) {}

  Expected run(const std::vector<float>& images, std::size_t batch, const RunOptions& options = {}) {
    result = controller.run(images.data(), batch, options);
    return {result.outputs, result.options, result.macs};
  }

  std::shared_ptr<FakeBackend> backend;
  Controller controller;
  Result result;
};

std::vector<float> images_of(std::size_t batch, unsigned seed = 0) {
  std::mt19937 random(seed);
  std::vector<float> images(batch * 4);
  for (float& value : images) value = static_cast<float>(random() % 100);
  return images;
}

}  // namespace

TEST_CASE("A run gives outputs, options and MACs in input order") {
  for (const bool on_device : {false, true}) {
    Fixture fixture(small_network(), on_device);
    for (std::size_t batch = 1; batch <= 9; ++batch) {
      const auto images = images_of(batch);
      const auto expected = expected_of(fixture.backend->network, images, std::vector<float>(batch, 3), nullptr, false);
      CHECK(fixture.run(images, batch) == expected);
      CHECK(fixture.result.batch == batch);
      CHECK(fixture.result.shape == std::vector<std::int64_t>{static_cast<std::int64_t>(batch), 3});
      CHECK(!fixture.result.approximate);
    }
    if (on_device) CHECK(fixture.backend->device_memory->wrongs == std::vector<std::string>{});
  }
}

TEST_CASE("Prices are the agent's, the caller's one, or one per image") {
  Fixture fixture;
  const auto images = images_of(4);
  const auto expected = [&](const std::vector<float>& prices) {
    return expected_of(fixture.backend->network, images, prices, nullptr, false);
  };
  RunOptions options;
  options.penalty = 8.0F;
  CHECK(fixture.run(images, 4, options) == expected({8, 8, 8, 8}));
  options.penalty.reset();
  const std::vector<float> prices{5, 6, 7, 8};
  options.penalties = prices.data();
  CHECK(fixture.run(images, 4, options) == expected(prices));
  options.policy = Policy::kSerial;
  CHECK(fixture.run(images, 4, options) == expected(prices));
}

TEST_CASE("A target takes the penalty that the calibration tells") {
  FakeNetwork network = small_network();
  CalibrationPoint dear, cheap;
  dear.macs_share = 0.9;
  cheap.penalty = 9;
  cheap.macs_share = 0.5;
  network.manifest.calibration.emplace();
  network.manifest.calibration->points = {dear, cheap};
  Fixture fixture(network);
  const auto images = images_of(4);
  RunOptions options;
  options.target_macs = 0.5;
  CHECK(fixture.run(images, 4, options) == expected_of(network, images, {9, 9, 9, 9}, nullptr, false));
}

TEST_CASE("Given options are taken, and the agent is not asked") {
  Fixture fixture;
  const auto images = images_of(5);
  const std::vector<std::int64_t> given{1, 2, 3, 1, 1, 2, 3, 2, 2, 1};
  RunOptions options;
  options.options = given.data();
  CHECK(fixture.run(images, 5, options) ==
        expected_of(fixture.backend->network, images, std::vector<float>(5, 3), given.data(), false));
  for (const std::string& file : fixture.backend->opened_files()) CHECK(file.rfind("agent", 0) != 0);
  options.policy = Policy::kRoundUp;
  fixture.run(images, 5, options);
  CHECK(fixture.result.options == std::vector<std::int64_t>{3, 2, 3, 2, 3, 2, 3, 2, 3, 2});
  CHECK(fixture.result.approximate);
}

TEST_CASE(
    "Serial runs are those of single images, and round-up takes the "
    "largest option") {
  Fixture fixture;
  const auto images = images_of(6);
  const std::vector<float> prices(6, 3);
  RunOptions options;
  options.policy = Policy::kSerial;
  CHECK(fixture.run(images, 6, options) == expected_of(fixture.backend->network, images, prices, nullptr, false));
  CHECK(!fixture.result.approximate);
  options.policy = Policy::kRoundUp;
  CHECK(fixture.run(images, 6, options) == expected_of(fixture.backend->network, images, prices, nullptr, true));
  CHECK(fixture.result.approximate);
  const std::size_t before = fixture.backend->calls;
  fixture.run(images, 6, options);
  CHECK(fixture.backend->calls - before == 5);  // the batch stays together
  fixture.run(images, 1, options);
  CHECK(!fixture.result.approximate);
}

TEST_CASE("Larger batches than an engine takes are run in parts") {
  Fixture fixture(small_network(), false, 4);
  const auto images = images_of(10);
  CHECK(fixture.run(images, 10) ==
        expected_of(fixture.backend->network, images, std::vector<float>(10, 3), nullptr, false));
  RunOptions options;
  options.policy = Policy::kRoundUp;
  fixture.run(images, 10, options);
  for (const std::size_t first : {0, 4, 8}) {  // each part for itself
    const std::size_t count = std::min<std::size_t>(4, 10 - first);
    const std::vector<float> part(images.begin() + static_cast<std::ptrdiff_t>(first * 4),
                                  images.begin() + static_cast<std::ptrdiff_t>((first + count) * 4));
    const auto expected = expected_of(fixture.backend->network, part, std::vector<float>(count, 3), nullptr, true);
    CHECK(std::equal(expected.options.begin(), expected.options.end(),
                     fixture.result.options.begin() + static_cast<std::ptrdiff_t>(first * 2)));
    CHECK(std::equal(expected.outputs.begin(), expected.outputs.end(),
                     fixture.result.outputs.begin() + static_cast<std::ptrdiff_t>(first * 3)));
  }
}

TEST_CASE("Any policy and batch gives what random networks give sample by sample") {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const FakeNetwork network = RandomNetwork(seed).make();
    std::mt19937 random(seed);
    Fixture fixture(network, seed % 3 == 0, seed % 4 * 2);
    for (std::size_t batch = 1; batch <= 9; ++batch) {
      INFO("seed " << seed << ", batch " << batch);
      std::vector<float> images(batch * 6);
      for (float& value : images) value = static_cast<float>(random() % 4);
      const std::vector<float> prices(batch, 7);
      std::vector<std::int64_t> given(batch * network.manifest.decisions.size());
      for (std::size_t i = 0; i < given.size(); ++i) {
        const auto count = network.manifest.option_count(i % network.manifest.decisions.size());
        given[i] = 1 + static_cast<std::int64_t>(random()) % count;
      }
      for (const bool deciding : {true, false}) {
        const std::int64_t* const options = deciding ? nullptr : given.data();
        RunOptions how;
        how.options = options;
        for (const Policy policy : {Policy::kRegroup, Policy::kSerial}) {
          how.policy = policy;
          CHECK(fixture.run(images, batch, how) == expected_of(network, images, prices, options, false));
        }
        how.policy = Policy::kRoundUp;
        if (seed % 4 == 0)
          CHECK(fixture.run(images, batch, how) == expected_of(network, images, prices, options, true));
      }
    }
    if (seed % 3 == 0) CHECK(fixture.backend->device_memory->wrongs == std::vector<std::string>{});
  }
}

TEST_CASE("While samples agree they are run together, on memory that is bound once") {
  Fixture fixture;
  std::vector<float> images(4 * 8, 5.0F);  // alike
  fixture.run(images, 8);
  CHECK(fixture.backend->calls == 5);
  CHECK(fixture.backend->binds == 5);
  fixture.run(images, 8);
  CHECK(fixture.backend->calls == 10);
  CHECK(fixture.backend->binds == 5);
}

TEST_CASE("Samples that take the same piece are run together") {
  Fixture fixture;
  const std::vector<std::int64_t> given{1, 1, 2, 1, 1, 2, 2, 1, 1, 1};  // 2 first options, 3 pairs
  RunOptions options;
  options.options = given.data();
  fixture.run(images_of(5), 5, options);
  CHECK(fixture.backend->calls == 1 + 2 + 3);
}

TEST_CASE("The trace tells of each decision of each group") {
  struct Seen {
    std::size_t decision;
    std::string conv;
    std::vector<std::int64_t> samples, options;
    double since_us;
  };
  std::vector<Seen> seen;
  ControllerOptions controller;
  controller.trace = [&](const DecisionEvent& event) {
    seen.push_back({event.decision,
                    event.conv,
                    {event.samples, event.samples + event.count},
                    {event.options, event.options + event.count},
                    event.since_start_us});
  };
  Fixture fixture(small_network(), false, 0, controller);
  const auto images = images_of(6);
  fixture.run(images, 6);
  REQUIRE(seen.size() >= 2);
  CHECK(seen[0].samples == std::vector<std::int64_t>{0, 1, 2, 3, 4, 5});
  CHECK(seen[0].conv == "conv.a");
  std::vector<std::int64_t> told(12, 0);
  double before = 0;
  for (const Seen& event : seen) {
    CHECK(event.conv == (event.decision == 0 ? "conv.a" : "conv.b"));
    CHECK(event.since_us >= before);
    before = event.since_us;
    for (std::size_t i = 0; i < event.samples.size(); ++i) {
      auto& option = told[static_cast<std::size_t>(event.samples[i]) * 2 + event.decision];
      CHECK(option == 0);
      option = event.options[i];
    }
  }
  CHECK(told == fixture.result.options);

  seen.clear();
  RunOptions options;
  options.policy = Policy::kRoundUp;
  fixture.run(images, 6, options);
  REQUIRE(seen.size() == 2);
  CHECK(seen[0].options == std::vector<std::int64_t>(6, fixture.result.options[0]));  // as taken

  seen.clear();
  options.policy = Policy::kSerial;
  fixture.run(images, 6, options);
  REQUIRE(seen.size() == 12);
  CHECK(seen[11].samples == std::vector<std::int64_t>{5});  // of the caller's batch

  seen.clear();
  const std::vector<std::int64_t> given(12, 1);
  options.options = given.data();
  fixture.run(images, 6, options);
  CHECK(seen.empty());
}

TEST_CASE("Images that lie on the device are copied there") {
  Fixture fixture(small_network(), true);
  FakeDevice& device = *fixture.backend->device_memory;
  const auto images = images_of(3);
  void* const there = device.allocate(images.size() * sizeof(float));
  device.copy_in(there, images.data(), images.size() * sizeof(float));
  RunOptions options;
  options.images_on_device = true;
  fixture.result = fixture.controller.run(static_cast<const float*>(there), 3, options);
  CHECK(fixture.result.outputs ==
        expected_of(fixture.backend->network, images, std::vector<float>(3, 3), nullptr, false).outputs);
  device.release(there);
  CHECK(device.wrongs == std::vector<std::string>{});
  Fixture on_host;
  CHECK(on_host.run(images, 3, options).outputs == fixture.result.outputs);
}

TEST_CASE("On a device the host waits for options and outputs alone") {
  Fixture fixture(small_network(), true);
  FakeDevice& device = *fixture.backend->device_memory;
  fixture.run(images_of(1), 1);
  CHECK(device.copies_out == 3);
  CHECK(device.copies_within == 0);
}

TEST_CASE("What does not fit is refused") {
  Fixture fixture;
  const auto images = images_of(2);
  const auto thrown = [&](const RunOptions& options) {
    return error_of([&] { fixture.controller.run(images.data(), 2, options); });
  };
  CHECK(error_of([&] { fixture.controller.run(nullptr, 1); }) == "input: images are null");
  CHECK(error_of([&] { fixture.controller.run(images.data(), 0); }) == "input: empty batch");
  CHECK(error_of([&] { fixture.controller.run(images.data(), static_cast<std::size_t>(-1)); }) ==
        "input: more than can be addressed");
  auto bad = images;
  bad[5] = std::numeric_limits<float>::quiet_NaN();
  CHECK(error_of([&] { fixture.controller.run(bad.data(), 2); }) == "input: image 1 holds NaN");
  RunOptions options;
  const std::int64_t given[] = {1, 1, 1, 3};
  options.options = given;
  CHECK(thrown(options) == "input: options range over 1..3");
  options = {};
  options.target_macs = 0.5;
  CHECK(thrown(options) == "input: needs a calibration");
  CHECK(fixture.backend->calls == 0);
  CHECK(error_of([] { Controller(Package::in_memory(small_network().manifest, small_network().plan), nullptr); }) ==
        "input: backend is null");
}

TEST_CASE("An option out of range is an error that names the file and the decision") {
  for (const bool on_device : {false, true}) {
    for (const std::int64_t option : {std::int64_t{0}, std::int64_t{-5}, std::int64_t{4}}) {
      for (const std::size_t batch : {1, 3}) {
        Fixture fixture(small_network(), on_device);
        fixture.backend->wrong_file = "agent/0";
        fixture.backend->wrong_option = option;
        CHECK(error_of([&] { fixture.run(images_of(batch), batch); }) ==
              "engine: agent/0 chose option " + std::to_string(option) + ".." + std::to_string(option) +
                  "; decision 0 has 1..3");
        fixture.backend->wrong_file.clear();
        fixture.run(images_of(batch), batch);
      }
    }
  }
}

TEST_CASE("After an engine failed the controller goes on") {
  for (const bool on_device : {false, true}) {
    for (const std::uint64_t budget : {0, 30}) {
      ControllerOptions options;
      options.memory_budget_bytes = budget;
      Fixture fixture(small_network(), on_device, 0, options);
      const auto images = images_of(5);
      const auto expected = expected_of(fixture.backend->network, images, std::vector<float>(5, 3), nullptr, false);
      CHECK(fixture.run(images, 5) == expected);
      const std::size_t calls = fixture.backend->calls;
      for (std::size_t i = 1; i <= calls; ++i) {
        fixture.backend->fail_call_at = fixture.backend->calls + i;
        CHECK(error_of([&] { fixture.run(images, 5); }) == "engine: failed");
        CHECK(fixture.run(images, 5) == expected);
      }
      if (on_device) CHECK(fixture.backend->device_memory->wrongs == std::vector<std::string>{});
    }
  }
}

TEST_CASE("A failed run leaves no work behind on the device") {
  for (const std::uint64_t budget : {0, 30}) {
    std::shared_ptr<FakeBackend> backend;
    {
      ControllerOptions options;
      options.memory_budget_bytes = budget;
      Fixture fixture(small_network(), true, 0, options);
      backend = fixture.backend;
      backend->fail_call_at = 2;  // while the first is only in the stream
      CHECK(error_of([&] { fixture.run(images_of(2), 2); }) == "engine: failed");
    }
    backend->device_memory->synchronise();
    CHECK(backend->device_memory->wrongs == std::vector<std::string>{});
    CHECK(backend->device_memory->blocks() == 0);
  }
}

TEST_CASE("Where the device's memory is short, the controller goes on") {
  Fixture fixture(small_network(), true);
  const auto images = images_of(5);
  const auto expected = expected_of(fixture.backend->network, images, std::vector<float>(5, 3), nullptr, false);
  for (std::size_t i = 1; i < 12; ++i) {
    fixture.backend->device_memory->fail_allocation_at = fixture.backend->device_memory->allocations + i;
    try {
      fixture.run(images, 5);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kDevice);
    }
    CHECK(fixture.run(images, 5) == expected);
  }
  CHECK(fixture.backend->device_memory->wrongs == std::vector<std::string>{});
}

TEST_CASE("Engines are opened when needed, or beforehand as far as the budget goes") {
  Fixture lazy;
  CHECK(lazy.backend->opened_files().empty());
  CHECK(lazy.controller.memory().engines_in_all == 12);
  lazy.controller.preload();
  CHECK(lazy.controller.memory().engines == 12);
  CHECK(lazy.controller.memory().weight_bytes == 131);
  CHECK(error_of([&] { lazy.controller.preload(true); }) == "input: needs a calibration");

  ControllerOptions options;
  options.preload = Preload::kAll;
  options.memory_budget_bytes = 75;
  Fixture some(small_network(), false, 0, options);
  CHECK(some.backend->opened_files() == std::vector<std::string>{"stem", "agent/0", "agent/1", "first/1"});
  CHECK(some.controller.memory().weight_bytes == 60);
  CHECK(some.controller.memory().evictions == 0);

  FakeNetwork network = small_network();
  CalibrationPoint point;
  point.option_counts = {{1, 0, 0}, {0, 1}};
  network.manifest.calibration.emplace();
  network.manifest.calibration->points = {point};
  options.preload = Preload::kCommon;
  options.memory_budget_bytes = 0;
  Fixture common(network, true, 0, options);
  CHECK(common.backend->opened_files() ==
        std::vector<std::string>{"stem", "agent/0", "first/1", "agent/1", "last/1-2"});
}

TEST_CASE("Under a budget engines are let go, and the report tells") {
  ControllerOptions options;
  options.memory_budget_bytes = 75;
  Fixture fixture(small_network(), false, 0, options);
  for (std::int64_t a = 1; a <= 3; ++a) {
    const std::int64_t given[] = {a, 1};
    RunOptions how;
    how.options = given;
    fixture.run(images_of(1), 1, how);
    CHECK(fixture.controller.memory().weight_bytes <= 75);
    CHECK(fixture.backend->engines == static_cast<int>(fixture.controller.memory().engines));
  }
  CHECK(fixture.controller.memory().evictions > 0);
  CHECK(fixture.controller.memory().workspace_bytes > 0);
}

TEST_CASE("A controller says what it is over") {
  Fixture fixture(small_network(), true);
  CHECK(fixture.controller.backend() == "fake");
  CHECK(fixture.controller.device() == "cuda");
  CHECK(fixture.controller.package().manifest().macs == 1000);
}
