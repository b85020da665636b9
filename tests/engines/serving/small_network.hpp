// A small network that is easy to reckon with: two decisions of three and two
// options, the agent beside.
#pragma once

#include "fake_backend.hpp"

namespace rnp::testing {

inline TensorSpec tensor_spec(const std::string& name, std::vector<std::int64_t> shape, DType dtype = DType::kFloat32) {
  TensorSpec spec;
  spec.name = name;
  spec.shape = std::move(shape);
  spec.dtype = dtype;
  return spec;
}

inline Piece piece_of(std::vector<std::int64_t> options, const std::string& file, std::int64_t macs,
                      std::int64_t weight_bytes) {
  return {std::move(options), file, macs, weight_bytes};
}

// stem → agent 0 → first (option 0) → agent 1 → last (options 0 and 1) →
// outputs
inline FakeNetwork small_network() {
  FakeNetwork network;
  Manifest& manifest = network.manifest;
  manifest.input = tensor_spec("images", {1, 2, 2});
  manifest.output = tensor_spec("outputs", {3});
  manifest.decisions = {{"conv.a", {2, 4, 6}, 1}, {"conv.b", {4, 8}, 2}};
  manifest.groups = 3;
  manifest.macs = 1000;
  manifest.agent.state_size = 2;
  manifest.agent.penalty = 3;

  TensorSpec x = tensor_spec("x", {6, 2});
  x.follows = 0;
  x.sizes = {2, 4, 6};
  network.plan.tensors = {tensor_spec(kPenalty, {}),
                          tensor_spec("images", {1, 2, 2}),
                          tensor_spec(state_name(0), {2}),
                          tensor_spec(state_name(1), {2}),
                          tensor_spec(state_name(2), {2}),
                          tensor_spec(option_name(0), {}, DType::kInt64),
                          tensor_spec(option_name(1), {}, DType::kInt32),
                          tensor_spec("stem", {2, 2}),
                          tensor_spec("f0", {2}),
                          tensor_spec("f1", {6}),
                          x,
                          tensor_spec("outputs", {3})};
  const auto agent = [](std::size_t t) {
    Step step;
    step.inputs = {{"features", "f" + std::to_string(t)}, {"state", state_name(t)}, {"penalty", kPenalty}};
    step.outputs = {{"option", option_name(t)}, {"next_state", state_name(t + 1)}};
    step.pieces = {piece_of({}, "agent/" + std::to_string(t), 0, 0)};
    step.decides = static_cast<std::int64_t>(t);
    step.agent_only = true;
    return step;
  };
  Step stem, first, last;
  stem.inputs = {{"images", "images"}};
  stem.outputs = {{"stem", "stem"}, {"f0", "f0"}};
  stem.pieces = {piece_of({}, "stem", 100, 50)};
  first.option_decisions = {0};
  first.inputs = {{"stem", "stem"}};
  first.outputs = {{"x", "x"}, {"f1", "f1"}};
  last.option_decisions = {0, 1};
  last.inputs = {{"x", "x"}, {"stem", "stem"}};
  last.outputs = {{"outputs", "outputs"}};
  for (std::int64_t a = 1; a <= 3; ++a) {
    first.pieces.push_back(piece_of({a}, "first/" + std::to_string(a), 10 * a, 10 * a));
    for (std::int64_t b = 1; b <= 2; ++b) {
      last.pieces.push_back(piece_of({a, b}, "last/" + std::to_string(a) + "-" + std::to_string(b), a * b, a + b));
    }
  }
  network.plan.steps = {stem, agent(0), first, agent(1), last};
  return network;
}

}  // namespace rnp::testing
