#include <algorithm>
#include <catch2/catch.hpp>
#include <random>

#include "plan_runner.hpp"
#include "random_networks.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

struct Case {
  std::size_t batch = 1;
  bool deciding = true, round_up = false;
  std::vector<float> images, prices;
  std::vector<std::int64_t> given;
};

Case random_case(std::mt19937& random, const FakeNetwork& network) {
  const auto between = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  Case made;
  made.batch = static_cast<std::size_t>(between(1, 9));
  made.deciding = between(0, 2) != 0;
  made.round_up = between(0, 3) == 0;
  for (std::size_t i = 0; i < made.batch * 6; ++i) made.images.push_back(static_cast<float>(between(0, 3)));
  // Samples that are alike go on together for longer.
  if (between(0, 1) == 0) {
    for (std::size_t i = 6; i < made.images.size(); ++i) made.images[i] = made.images[i % 6];
  }
  for (std::size_t i = 0; i < made.batch; ++i) made.prices.push_back(static_cast<float>(between(0, 1)));
  if (between(0, 1) == 0) std::fill(made.prices.begin(), made.prices.end(), 1.0F);
  const std::size_t decisions = network.manifest.decisions.size();
  for (std::size_t i = 0; i < made.batch * decisions; ++i) {
    made.given.push_back(between(1, static_cast<int>(network.manifest.option_count(i % decisions))));
  }
  return made;
}

Expected run(PlanRunner& runner, const FakeNetwork& network, const Case& one) {
  Expected result;
  result.outputs.assign(one.batch * 6, -1);
  result.macs.assign(one.batch, -1);
  result.options = one.given;
  if (one.deciding) std::fill(result.options.begin(), result.options.end(), 0);
  if (!one.deciding && one.round_up) {
    const std::size_t decisions = network.manifest.decisions.size();
    for (std::size_t i = 0; i < one.given.size(); ++i) {
      for (std::size_t n = 0; n < one.batch; ++n) {
        result.options[i] = std::max(result.options[i], one.given[n * decisions + i % decisions]);
      }
    }
  }
  BatchRun batch;
  batch.images = one.images.data();
  batch.prices = one.prices.data();
  batch.options = result.options.data();
  batch.count = one.batch;
  batch.deciding = one.deciding;
  batch.round_up = one.round_up;
  batch.outputs = result.outputs.data();
  batch.macs = result.macs.data();
  runner.run(batch);
  return result;
}

void check_equal(const Expected& result, const Expected& expected) {
  CHECK(result.options == expected.options);
  CHECK(result.macs == expected.macs);
  CHECK(result.outputs == expected.outputs);
}

void check_network(unsigned seed, bool on_device, std::uint64_t budget, PartLimits limits) {
  const FakeNetwork network = RandomNetwork(seed).make();
  FakeBackend backend(network, on_device);
  {
    PlanRunner runner(network.plan, network.manifest, backend, budget, {}, limits);
    std::mt19937 random(seed);
    for (int i = 0; i < 12; ++i) {
      const Case one = random_case(random, network);
      INFO("seed " << seed << ", case " << i << ", batch " << one.batch << ", deciding " << one.deciding
                   << ", round up " << one.round_up << ", budget " << budget << ", part " << limits.part_bytes);
      check_equal(run(runner, network, one), expected_of(network, one.images, one.prices,
                                                         one.deciding ? nullptr : one.given.data(), one.round_up));
    }
  }
  CHECK(backend.engines == 0);
  if (on_device) {
    CHECK(backend.device_memory->wrongs == std::vector<std::string>{});
    CHECK(backend.device_memory->blocks() == 0);
  }
}

}  // namespace

TEST_CASE("Batches give what every sample gives alone") {
  for (unsigned seed = 0; seed < 50; ++seed) check_network(seed, false, 0, {});
}

TEST_CASE("Batches in parts give what every sample gives alone") {
  for (unsigned seed = 0; seed < 50; ++seed) {
    // From all tensors large in parts of one to some large in parts of several.
    check_network(seed, false, 0,
                  {static_cast<std::int64_t>(seed % 5 * 30), static_cast<std::int64_t>(seed % 4 * 400)});
  }
}

TEST_CASE("Images that are read where the caller has them give what copied ones give") {
  for (unsigned seed = 0; seed < 50; ++seed) {
    check_network(seed, false, seed % 2 * (1 + seed % 60), {static_cast<std::int64_t>(seed % 3 * 60), 1200, 0});
  }
}

TEST_CASE("Under a budget batches give what every sample gives alone") {
  for (unsigned seed = 0; seed < 25; ++seed) {
    check_network(seed, false, 1 + seed % 60, {static_cast<std::int64_t>(seed % 5 * 30), 300});
  }
}

TEST_CASE("On a device batches give what every sample gives alone") {
  for (unsigned seed = 0; seed < 40; ++seed) check_network(seed, true, 0, {1, 1});
}

TEST_CASE("On a device under a budget batches give what every sample gives alone") {
  for (unsigned seed = 0; seed < 25; ++seed) check_network(seed, true, 1 + seed % 60, {});
}
