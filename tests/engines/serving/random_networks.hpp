// Random plans, and what they give sample by sample.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "fake_backend.hpp"

namespace rnp::testing {

// What one run gives.
struct Expected {
  std::vector<float> outputs;
  std::vector<std::int64_t> options, macs;

  friend bool operator==(const Expected& a, const Expected& b) {
    return a.outputs == b.outputs && a.options == b.options && a.macs == b.macs;
  }
};

// One to four decisions, with the agent inside or beside, shortcuts, tensors
// that follow decisions, and memory used twice.
class RandomNetwork {
 public:
  explicit RandomNetwork(unsigned seed) : random_(seed) {}

  FakeNetwork make() {
    const int decisions = between(1, 4);
    for (int t = 0; t < decisions; ++t) {
      DecisionManifest decision;
      decision.conv = "conv" + std::to_string(t);
      const int count = between(1, 3);
      for (int option = 1; option <= count; ++option) decision.widths.push_back(option);
      network_.manifest.decisions.push_back(decision);
    }
    network_.manifest.groups = 3;
    network_.manifest.agent.penalty = 7;
    network_.manifest.input = spec("images", {2, 3});
    network_.manifest.output = spec("outputs", {3, 2});
    add(spec(kPenalty, {}));
    add(network_.manifest.input);
    const DType option_type = flip() ? DType::kInt64 : DType::kInt32;
    for (std::size_t t = 0; t <= count(); ++t) {
      add(spec(state_name(t), {2}));
      if (t < count()) add(spec(option_name(t), {}, option_type));
    }
    passed_on_ = {network_.manifest.input};
    const bool fused = flip();
    const auto ends_at = static_cast<std::size_t>(flip() ? decisions : between(0, decisions - 1));
    for (std::size_t s = 0; s <= count(); ++s) add_stage(s, fused, s == ends_at);
    let_some_be_in_place();
    return network_;
  }

 private:
  void add_stage(std::size_t s, bool fused, bool ends) {
    if (s != 0 && !fused) network_.plan.steps.push_back(agent_step(s - 1));
    Step step;
    std::set<std::int64_t> decisions;
    if (s != 0) decisions.insert(static_cast<std::int64_t>(s - 1));
    auto read = passed_on_;
    std::shuffle(read.begin(), read.end(), random_);
    read.resize(std::min<std::size_t>(read.size(), static_cast<std::size_t>(between(1, 3))));
    for (const TensorSpec& tensor : read) {
      step.inputs["in." + tensor.name] = tensor.name;
      if (tensor.follows) decisions.insert(*tensor.follows);
    }
    if (flip()) step.inputs["again"] = read[0].name;
    const int made = between(1, 2);
    for (int n = 0; n < made; ++n) {
      TensorSpec tensor = random_tensor("x" + std::to_string(s) + "." + std::to_string(n), s);
      add(tensor);
      passed_on_.push_back(tensor);
      step.outputs["out." + tensor.name] = tensor.name;
    }
    if (ends) {
      add(network_.manifest.output);
      passed_on_.push_back(network_.manifest.output);
      step.outputs["out.outputs"] = "outputs";
    }
    if (s < count() && !fused) {
      add(spec("f" + std::to_string(s), {2}));
      step.outputs["features"] = "f" + std::to_string(s);
    }
    if (s < count() && fused) {
      Step agent = agent_step(s);
      agent.inputs.erase("features");
      step.inputs.insert(agent.inputs.begin(), agent.inputs.end());
      step.outputs.insert(agent.outputs.begin(), agent.outputs.end());
      step.decides = agent.decides;
    }
    step.option_decisions.assign(decisions.begin(), decisions.end());
    add_pieces(step, s);
    network_.plan.steps.push_back(step);
  }

  void add_pieces(Step& step, std::size_t s) {
    std::vector<std::int64_t> options(step.option_decisions.size(), 1);
    while (true) {
      Piece piece;
      piece.options = options;
      piece.file = "s" + std::to_string(s) + "/";
      piece.macs = 1000 * static_cast<std::int64_t>(s + 1);
      std::int64_t digit = 1;
      for (const std::int64_t option : options) {
        piece.file += std::to_string(option) + "-";
        piece.macs += option * (digit *= 7);
        piece.weight_bytes += option;
      }
      piece.weight_bytes += 10;
      step.pieces.push_back(piece);
      std::size_t i = 0;
      while (i < options.size() &&
             options[i] == network_.manifest.option_count(static_cast<std::size_t>(step.option_decisions[i]))) {
        options[i++] = 1;
      }
      if (i == options.size()) break;
      ++options[i];
    }
    std::shuffle(step.pieces.begin(), step.pieces.end(), random_);
  }

  static Step agent_step(std::size_t t) {
    Step step;
    step.inputs = {{"features", "f" + std::to_string(t)}, {"state", state_name(t)}, {"penalty", kPenalty}};
    step.outputs = {{"option", option_name(t)}, {"next_state", state_name(t + 1)}};
    step.pieces.resize(1);
    step.pieces[0].file = "agent/" + std::to_string(t);
    step.decides = static_cast<std::int64_t>(t);
    step.agent_only = true;
    return step;
  }

  // Stage s may make what follows the decision before it.
  TensorSpec random_tensor(const std::string& name, std::size_t s) {
    static constexpr std::int64_t kSizes[] = {1, 8, 20, 40};
    TensorSpec tensor = spec(name, {kSizes[between(0, 3)], 2}, flip() ? DType::kFloat32 : DType::kFloat16);
    if (s == 0 || flip()) return tensor;
    tensor.follows = static_cast<std::int64_t>(s - 1);
    tensor.axis = between(1, 2);
    std::int64_t size = 0;
    for (std::int64_t i = 0; i < network_.manifest.option_count(s - 1); ++i) {
      tensor.sizes.push_back(size += between(1, 12));
    }
    tensor.shape[static_cast<std::size_t>(tensor.axis - 1)] = size;
    return tensor;
  }

  // Outputs may take the memory of inputs of the same shape that nothing needs
  // afterwards.
  void let_some_be_in_place() {
    std::map<std::string, std::size_t> last;
    auto& steps = network_.plan.steps;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      for (const auto& [inner, name] : steps[i].inputs) last[name] = i;
    }
    for (std::size_t i = 0; i < steps.size(); ++i) {
      std::set<std::string> taken;
      for (const auto& [out_inner, out] : steps[i].outputs) {
        for (const auto& [inner, name] : steps[i].inputs) {
          const TensorSpec &a = network_.tensor(name), &b = network_.tensor(out);
          const bool fits = last[name] == i && name != "outputs" && taken.count(name) == 0 && !a.follows &&
                            !b.follows && a.shape == b.shape && a.dtype == b.dtype;
          if (!fits || flip()) continue;
          steps[i].in_place[out] = name;
          taken.insert(name);
          break;
        }
      }
    }
  }

  static TensorSpec spec(const std::string& name, std::vector<std::int64_t> shape, DType dtype = DType::kFloat32) {
    TensorSpec made;
    made.name = name;
    made.shape = std::move(shape);
    made.dtype = dtype;
    return made;
  }

  void add(const TensorSpec& tensor) { network_.plan.tensors.push_back(tensor); }
  std::size_t count() const { return network_.manifest.decisions.size(); }
  int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool flip() { return between(0, 1) == 1; }

  std::mt19937 random_;
  FakeNetwork network_;
  std::vector<TensorSpec> passed_on_;
};

// A batch, in the plainest way: every sample alone, every tensor in memory of
// its own. `given` [N, T] or null. `round_up`: at each decision all take the
// largest option.
inline Expected expected_of(const FakeNetwork& network, const std::vector<float>& images,
                            const std::vector<float>& prices, const std::int64_t* given, bool round_up) {
  const std::size_t batch = prices.size(), decisions = network.manifest.decisions.size();
  const std::size_t values = images.size() / batch;
  Expected expected;
  expected.options.assign(batch * decisions, 0);
  expected.macs.assign(batch, 0);
  if (given != nullptr) expected.options.assign(given, given + batch * decisions);
  if (given != nullptr && round_up) {
    for (std::size_t i = 0; i < batch * decisions; ++i) {
      for (std::size_t n = 0; n < batch; ++n) {
        expected.options[i] = std::max(expected.options[i], given[n * decisions + i % decisions]);
      }
    }
  }
  std::vector<Values> samples(batch);
  for (std::size_t n = 0; n < batch; ++n) {
    samples[n][network.manifest.input.name].assign(images.begin() + static_cast<std::ptrdiff_t>(n * values),
                                                   images.begin() + static_cast<std::ptrdiff_t>((n + 1) * values));
    samples[n][kPenalty] = {static_cast<std::int64_t>(prices[n])};
    samples[n][state_name(0)] = {0, 0};
  }
  for (const Step& step : network.plan.steps) {
    if (step.agent_only && given != nullptr) continue;
    std::int64_t most = 0;
    for (std::size_t n = 0; n < batch; ++n) {
      std::int64_t* const options = expected.options.data() + n * decisions;
      const auto piece = std::find_if(step.pieces.begin(), step.pieces.end(), [&](const Piece& candidate) {
        for (std::size_t i = 0; i < candidate.options.size(); ++i) {
          if (candidate.options[i] != options[step.option_decisions[i]]) return false;
        }
        return true;
      });
      Values made;
      network.compute(
          step, *piece,
          [&](const std::string&, const std::string& name, std::size_t i) { return samples[n].at(name).at(i); },
          [&](const std::string&, const std::string& name, std::size_t, std::int64_t value) {
            made[name].push_back(value);
          });
      for (auto& [name, computed] : made) samples[n][name] = computed;
      expected.macs[n] += piece->macs;
      if (!step.decides || given != nullptr) continue;
      options[*step.decides] = samples[n].at(option_name(static_cast<std::size_t>(*step.decides)))[0];
      most = std::max(most, options[*step.decides]);
    }
    for (std::size_t n = 0; round_up && step.decides && given == nullptr && n < batch; ++n) {
      expected.options[n * decisions + static_cast<std::size_t>(*step.decides)] = most;
    }
  }
  for (const Values& sample : samples) {
    for (const std::int64_t value : sample.at("outputs")) expected.outputs.push_back(static_cast<float>(value));
  }
  return expected;
}

}  // namespace rnp::testing
