#include <atomic>
#include <catch2/catch.hpp>
#include <random>
#include <thread>

#include "random_networks.hpp"
#include "rnp/controller.hpp"
#include "small_network.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

// Threads that run mixed batches by one controller, each against what its
// samples give alone; how many were wrong.
int wrong_runs(bool on_device, std::uint64_t budget, int threads, int rounds) {
  const FakeNetwork network = small_network();
  const auto backend = std::make_shared<FakeBackend>(network, on_device);
  ControllerOptions options;
  options.memory_budget_bytes = budget;
  Controller controller(Package::in_memory(network.manifest, network.plan), backend, options);
  std::atomic<int> wrong{0};
  const auto work = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < rounds; ++i) {
      const std::size_t batch = 1 + random() % 5;
      std::vector<float> images(batch * 4);
      for (float& value : images) value = static_cast<float>(random() % 50);
      std::vector<std::int64_t> given(batch * 2);
      for (std::size_t n = 0; n < given.size(); ++n) {
        given[n] = 1 + static_cast<std::int64_t>(random() % (n % 2 == 0 ? 3 : 2));
      }
      RunOptions how;
      const std::int64_t* const chosen = random() % 3 == 0 ? given.data() : nullptr;
      how.options = chosen;
      how.policy = static_cast<Policy>(random() % 3);
      const Result result = controller.run(images.data(), batch, how);
      const Expected expected =
          expected_of(network, images, std::vector<float>(batch, 3), chosen, how.policy == Policy::kRoundUp);
      if (!(Expected{result.outputs, result.options, result.macs} == expected)) ++wrong;
      if (random() % 16 == 0 && controller.memory().engines > 12) ++wrong;
    }
  };
  std::vector<std::thread> running;
  for (int n = 0; n < threads; ++n) running.emplace_back(work, static_cast<unsigned>(n));
  for (std::thread& thread : running) thread.join();
  if (on_device) wrong += static_cast<int>(backend->device_memory->wrongs.size());
  return wrong;
}

}  // namespace

TEST_CASE("Many threads share a controller") { CHECK(wrong_runs(false, 0, 8, 150) == 0); }
TEST_CASE("Many threads share a controller whose engines are let go") { CHECK(wrong_runs(false, 70, 8, 150) == 0); }
TEST_CASE("Many threads share a device") { CHECK(wrong_runs(true, 0, 8, 100) == 0); }
TEST_CASE("Many threads share a device whose engines are let go") { CHECK(wrong_runs(true, 70, 8, 100) == 0); }
