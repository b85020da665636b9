#include "memory_layout.hpp"

#include <catch2/catch.hpp>
#include <limits>
#include <set>

#include "errors.hpp"
#include "random_networks.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

TensorSpec values(const std::string& name, std::int64_t count) {
  TensorSpec spec;
  spec.name = name;
  spec.shape = {count};
  return spec;
}

Step step(Names inputs, Names outputs, Names in_place = {}) {
  Step made;
  made.inputs = std::move(inputs);
  made.outputs = std::move(outputs);
  made.in_place = std::move(in_place);
  return made;
}

// Goes through a plan and fails where a tensor is written over before its last
// use.
void check_nothing_is_lost(const Plan& plan, const std::string& kept) {
  const MemoryLayout layout(plan, kept);
  const auto indices = tensor_indices(plan);
  auto last = last_uses(plan);
  last[indices.at(kept)] = static_cast<std::ptrdiff_t>(plan.steps.size());
  std::map<std::size_t, std::string> holds;  // slot → tensor
  const auto slot_of = [&](const std::string& name) { return layout.slot_of[indices.at(name)]; };
  std::set<std::string> made;
  for (const Step& each : plan.steps) {
    for (const auto& [inner, name] : each.outputs) made.insert(name);
  }
  for (const Step& each : plan.steps) {
    for (const auto& [inner, name] : each.inputs) {
      if (made.count(name) == 0) holds[slot_of(name)] = name;
    }
  }
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    std::set<std::size_t> written;
    for (const auto& [inner, name] : plan.steps[i].inputs) REQUIRE(holds[slot_of(name)] == name);
    for (const auto& [inner, name] : plan.steps[i].outputs) {
      const auto in_place = plan.steps[i].in_place.find(name);
      for (const auto& [in_inner, input] : plan.steps[i].inputs) {
        const bool may = in_place != plan.steps[i].in_place.end() && in_place->second == input;
        REQUIRE((may || slot_of(input) != slot_of(name)));
      }
      REQUIRE(written.insert(slot_of(name)).second);
      REQUIRE(layout.slot_bytes[slot_of(name)] >=
              static_cast<std::size_t>(layout.tensors[indices.at(name)].largest_bytes()));
      const auto before = holds.find(slot_of(name));
      if (before != holds.end()) REQUIRE(last[indices.at(before->second)] <= static_cast<std::ptrdiff_t>(i));
      holds[slot_of(name)] = name;
    }
  }
  REQUIRE(holds[slot_of(kept)] == kept);
}

}  // namespace

TEST_CASE("No tensor is written over before its last use") {
  for (unsigned seed = 0; seed < 300; ++seed) {
    INFO("seed " << seed);
    const FakeNetwork network = RandomNetwork(seed).make();
    check_nothing_is_lost(network.plan, "outputs");
  }
}

TEST_CASE("Tensors that are never needed together share memory") {
  Plan plan;
  plan.tensors = {values("a", 16), values("b", 16), values("c", 20), values("d", 1)};
  plan.steps = {step({{"x", "a"}}, {{"y", "b"}}), step({{"x", "b"}}, {{"y", "c"}}), step({{"x", "c"}}, {{"y", "d"}})};
  const MemoryLayout layout(plan, "d");
  CHECK(layout.slot_of == std::vector<std::size_t>{0, 1, 0, 1});
  CHECK(layout.slot_bytes == std::vector<std::size_t>{128, 64});
  CHECK(layout.sample_bytes == 192);
}

TEST_CASE(
    "Of free slots the one is taken that grows least, and of those that "
    "fit the smallest") {
  Plan plan;
  plan.tensors = {values("a", 64), values("b", 16), values("c", 32), values("e", 1), values("d", 40), values("f", 8)};
  plan.steps = {step({{"1", "a"}, {"2", "b"}, {"3", "c"}}, {{"y", "e"}}), step({{"x", "e"}}, {{"y", "d"}, {"z", "f"}})};
  const MemoryLayout layout(plan, "d");
  CHECK(layout.slot_of == std::vector<std::size_t>{0, 1, 2, 3, 0, 1});
  CHECK(layout.slot_bytes == std::vector<std::size_t>{256, 64, 128, 64});
}

TEST_CASE(
    "An output takes the memory of an input where it may, and nothing "
    "reads that later") {
  Plan plan;
  plan.tensors = {values("a", 16), values("b", 16), values("c", 16)};
  plan.steps = {step({{"x", "a"}}, {{"y", "b"}}, {{"b", "a"}}), step({{"x", "b"}}, {{"y", "c"}})};
  CHECK(MemoryLayout(plan, "c").slot_of == std::vector<std::size_t>{0, 0, 1});
  plan.steps[1].inputs["again"] = "a";
  CHECK(MemoryLayout(plan, "c").slot_of == std::vector<std::size_t>{0, 1, 2});
}

TEST_CASE("A tensor that no step touches has no memory") {
  Plan plan;
  plan.tensors = {values("a", 16), values("idle", 1000), values("b", 16)};
  plan.steps = {step({{"x", "a"}}, {{"y", "b"}})};
  const MemoryLayout layout(plan, "b");
  CHECK(layout.slot_of[1] == MemoryLayout::kNoSlot);
  CHECK(layout.sample_bytes == 128);
}

TEST_CASE(
    "A plan that names what it has not, or more than can be addressed, "
    "is refused") {
  Plan plan;
  plan.tensors = {values("a", 16), values("b", 16)};
  plan.steps = {step({{"x", "a"}}, {{"y", "c"}})};
  CHECK(error_of([&] { MemoryLayout(plan, "b"); }) == "plan: 'c', which is no tensor");
  plan.steps = {step({{"x", "a"}}, {{"y", "b"}})};
  CHECK(error_of([&] { MemoryLayout(plan, "z"); }) == "plan: no tensor 'z'");
  plan.tensors = {values("a", std::int64_t{1} << 60), values("b", std::int64_t{1} << 60)};
  CHECK(error_of([&] { MemoryLayout(plan, "b"); }) == "plan: more than can be addressed");
}
