#include "workspace.hpp"

#include <catch2/catch.hpp>

#include "backends.hpp"
#include "errors.hpp"
#include "small_network.hpp"

using namespace rnp;
using namespace rnp::testing;

TEST_CASE("A workspace is used again by batches of its size, and by one at a time") {
  const auto memory = host_memory({});
  const FakeNetwork network = small_network();
  Workspaces workspaces(network.plan, "outputs", *memory);
  const Workspace* first = nullptr;
  {
    const auto one = workspaces.lend(3);
    first = &*one;
    CHECK(one->batch() == 3);
    CHECK(&*workspaces.lend(3) != first);
    CHECK(&*workspaces.lend(4) != first);
  }
  CHECK(workspaces.bytes() == (3 + 3 + 4) * workspaces.layout().sample_bytes);
  // The one that was used last is still warm.
  CHECK(&*workspaces.lend(3) == first);
}

TEST_CASE(
    "Idle workspaces beyond the limit are let go, the largest first, but "
    "for the last") {
  FakeNetwork network = small_network();
  network.plan.tensors[7].shape = {std::int64_t{15} << 20};  // 60 MiB a sample
  const auto memory = host_memory({});
  Workspaces workspaces(network.plan, "outputs", *memory);
  const std::size_t sample = workspaces.layout().sample_bytes;
  for (const std::size_t batch : {2, 5, 1}) workspaces.lend(batch);
  CHECK(workspaces.bytes() == 8 * sample);
  workspaces.lend(3);
  CHECK(workspaces.bytes() == (2 + 5 + 1 + 3) * sample);  // 2 + 5 + 1 are within 512 MiB
  workspaces.lend(9);
  CHECK(workspaces.bytes() == (2 + 1 + 3 + 9) * sample);
}

TEST_CASE("More samples than can be addressed are refused") {
  const auto memory = host_memory({});
  const FakeNetwork network = small_network();
  Workspaces workspaces(network.plan, "outputs", *memory);
  CHECK(error_of([&] { workspaces.lend(std::numeric_limits<std::size_t>::max() / 64); }) == "input: can be addressed");
  CHECK(workspaces.bytes() == 0);
}

TEST_CASE("Where memory is short, what is idle is let go and it is asked for once more") {
  FakeDevice device;
  const FakeNetwork network = small_network();
  int asked = 0;
  Workspaces workspaces(network.plan, "outputs", device, [&] {
    ++asked;
    return false;
  });
  const auto kept = workspaces.lend(1);
  workspaces.lend(2);
  device.fail_allocation_at = 1;
  {
    const auto other = workspaces.lend(3);
    CHECK(workspaces.bytes() == (1 + 3) * workspaces.layout().sample_bytes);
    CHECK(asked == 1);
    device.allocations = 0;
    CHECK(error_of([&] { workspaces.lend(4); }) == "device: exhausted");  // nothing is idle
    CHECK(asked == 2);
  }
  CHECK(workspaces.bytes() == (1 + 3) * workspaces.layout().sample_bytes);
}

TEST_CASE("A workspace that could not be made leaves nothing behind") {
  FakeDevice device;
  const FakeNetwork network = small_network();
  Workspaces workspaces(network.plan, "outputs", device);
  device.fail_allocation_at = 3;
  CHECK(error_of([&] { workspaces.lend(2); }) == "device: exhausted");
  CHECK(device.blocks() == 0);
  CHECK(workspaces.bytes() == 0);
}
