#include "plan.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "json.hpp"
#include "rnp/error.hpp"
#include "saturated.hpp"

namespace rnp {

namespace {

TensorSpec described(std::string name, std::vector<std::int64_t> shape, DType dtype) {
  TensorSpec tensor;
  tensor.name = std::move(name);
  tensor.shape = std::move(shape);
  tensor.dtype = dtype;
  return tensor;
}

Step agent_step(const Manifest& manifest, std::size_t t) {
  const AgentStepManifest& agent = manifest.agent.steps[t];
  Step step;
  step.inputs = {{"features", agent.features}, {"state", state_name(t)}, {"penalty", kPenalty}};
  step.outputs = {{"option", option_name(t)}, {"next_state", state_name(t + 1)}};
  step.pieces = {{{}, agent.file, 0, 0}};
  step.decides = static_cast<std::int64_t>(t);
  step.agent_only = true;
  return step;
}

Step stage_step(const StageManifest& stage) {
  Step step;
  step.option_decisions = stage.input_decisions;
  if (stage.decision) step.option_decisions.push_back(*stage.decision);
  for (const TensorSpec& tensor : stage.inputs) step.inputs.emplace(tensor.name, tensor.name);
  for (const TensorSpec& tensor : stage.outputs) step.outputs.emplace(tensor.name, tensor.name);
  for (const BranchManifest& branch : stage.branches) {
    Piece piece{branch.input_options, branch.file, branch.macs, branch.weight_bytes};
    if (branch.output_option) piece.options.push_back(*branch.output_option);
    step.pieces.push_back(std::move(piece));
  }
  return step;
}

[[noreturn]] void refuse(const std::string& why) { throw Error(ErrorCode::kPlan, "plan: " + why); }

[[noreturn]] void refuse(std::size_t step, const std::string& why) {
  refuse("step " + std::to_string(step) + " " + why);
}

void check_tensors(const Plan& plan, const Manifest& manifest, const std::set<std::string>& wanted) {
  std::set<std::string_view> names;
  for (const TensorSpec& tensor : plan.tensors) {
    names.insert(tensor.name);
    if (!tensor.follows) continue;
    const auto t = static_cast<std::uint64_t>(*tensor.follows);
    if (t >= manifest.decisions.size() ||
        static_cast<std::int64_t>(tensor.sizes.size()) != manifest.option_count(static_cast<std::size_t>(t)) ||
        tensor.axis > static_cast<std::int64_t>(tensor.shape.size())) {
      refuse("tensor " + json_quoted(tensor.name) + " does not fit the decision it follows");
    }
  }
  for (const std::string& name : wanted) {
    if (names.count(name) == 0) refuse("it has no tensor " + json_quoted(name));
  }
}

// Every choice of options has one piece.
void check_pieces(std::size_t index, const Step& step, const Manifest& manifest) {
  std::vector<std::int64_t> most;
  for (const std::int64_t t : step.option_decisions) most.push_back(manifest.option_count(static_cast<std::size_t>(t)));
  bool fits = static_cast<std::int64_t>(step.pieces.size()) == saturated_product(most);
  std::set<std::vector<std::int64_t>> seen;
  for (std::size_t p = 0; fits && p < step.pieces.size(); ++p) {
    const std::vector<std::int64_t>& options = step.pieces[p].options;
    fits = options.size() == most.size();
    for (std::size_t i = 0; fits && i < options.size(); ++i) fits = options[i] >= 1 && options[i] <= most[i];
    fits = fits && seen.insert(options).second;
  }
  if (!fits) refuse(index, "has not one piece for each choice of options");
}

}  // namespace

Plan plan_of_bundle(const Manifest& manifest) {
  Plan plan;
  std::unordered_map<std::string, std::size_t> places;
  const auto add = [&](TensorSpec tensor) {
    const auto [place, is_new] = places.emplace(tensor.name, plan.tensors.size());
    if (is_new) {
      plan.tensors.push_back(std::move(tensor));
    } else {
      plan.tensors[place->second] = std::move(tensor);
    }
  };
  const std::size_t total = manifest.decisions.size();
  add(described(kPenalty, {}, DType::kFloat32));
  for (std::size_t t = 0; t <= total; ++t) add(described(state_name(t), {manifest.agent.state_size}, DType::kFloat32));
  for (std::size_t t = 0; t < total; ++t) add(described(option_name(t), {}, DType::kInt64));
  for (const StageManifest& stage : manifest.stages) {
    if (stage.decision) plan.steps.push_back(agent_step(manifest, static_cast<std::size_t>(*stage.decision)));
    for (const TensorSpec& tensor : stage.inputs) add(tensor);
    for (const TensorSpec& tensor : stage.outputs) add(tensor);
    plan.steps.push_back(stage_step(stage));
  }
  return plan;
}

void check_plan(const Plan& plan, const Manifest& manifest) {
  std::unordered_set<std::string> made{manifest.input.name, kPenalty, state_name(0)};
  std::set<std::string> wanted(made.begin(), made.end());
  wanted.insert(manifest.output.name);
  const std::size_t total = manifest.decisions.size();
  for (std::size_t t = 0; t < total; ++t) wanted.insert(option_name(t));
  check_tensors(plan, manifest, wanted);

  std::set<std::int64_t> decided;
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    for (const std::int64_t t : step.option_decisions) {
      if (decided.count(t) == 0) refuse(i, "needs options before they are chosen");
    }
    check_pieces(i, step, manifest);
    for (const auto& [own, name] : step.inputs) {
      if (made.count(name) == 0) refuse(i, "reads " + json_quoted(name) + " before it is made");
    }
    for (const auto& [own, name] : step.outputs) made.insert(name);
    if (!step.decides) continue;
    if (static_cast<std::uint64_t>(*step.decides) >= total || !decided.insert(*step.decides).second) {
      refuse(i, "takes a decision that there is not, or takes one twice");
    }
  }
  for (const std::string& name : wanted) {
    if (made.count(name) == 0) refuse("no step makes " + json_quoted(name));
  }
  if (decided.size() != total) refuse("it leaves a decision open");
}

}  // namespace rnp
