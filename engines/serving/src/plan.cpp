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

using Tensors = std::unordered_map<std::string_view, const TensorSpec*>;

// What the controller itself reads and writes is as it takes it.
void check_end(const Tensors& tensors, const std::string& name, const std::vector<std::int64_t>& shape,
               std::initializer_list<DType> dtypes) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) refuse("it has no tensor " + json_quoted(name));
  const TensorSpec& tensor = *found->second;
  if (tensor.shape != shape || tensor.follows ||
      std::find(dtypes.begin(), dtypes.end(), tensor.dtype) == dtypes.end()) {
    refuse("tensor " + json_quoted(name) + " is not of the shape and type that the network or the agent has");
  }
}

void check_tensors(const Plan& plan, const Tensors& tensors, const Manifest& manifest) {
  check_end(tensors, manifest.input.name, manifest.input.shape, {DType::kFloat32});
  check_end(tensors, manifest.output.name, manifest.output.shape, {DType::kFloat32});
  check_end(tensors, kPenalty, {}, {DType::kFloat32});
  check_end(tensors, state_name(0), {manifest.agent.state_size}, {DType::kFloat32});
  for (std::size_t t = 0; t < manifest.decisions.size(); ++t) {
    check_end(tensors, option_name(t), {}, {DType::kInt32, DType::kInt64});
  }
  for (const TensorSpec& tensor : plan.tensors) {
    if (!tensor.follows) continue;
    const auto t = static_cast<std::uint64_t>(*tensor.follows);
    if (t >= manifest.decisions.size() ||
        static_cast<std::int64_t>(tensor.sizes.size()) != manifest.option_count(static_cast<std::size_t>(t)) ||
        tensor.axis > static_cast<std::int64_t>(tensor.shape.size())) {
      refuse("tensor " + json_quoted(tensor.name) + " does not fit the decision it follows");
    }
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

// What a step reads was made, what it makes was not, and both are as wide as its own options say.
void check_names(std::size_t index, const Step& step, const Tensors& tensors, std::unordered_set<std::string>& made) {
  const std::set<std::int64_t> options(step.option_decisions.begin(), step.option_decisions.end());
  const auto check_width = [&](const std::string& name) {
    const auto tensor = tensors.find(name);
    if (tensor == tensors.end()) refuse(index, "names " + json_quoted(name) + ", which is no tensor of the plan");
    if (tensor->second->follows && options.count(*tensor->second->follows) == 0) {
      refuse(index, "takes or gives " + json_quoted(name) + " but not the option it follows");
    }
  };
  for (const auto& [own, name] : step.inputs) {
    if (made.count(name) == 0) refuse(index, "reads " + json_quoted(name) + " before it is made");
    check_width(name);
  }
  for (const auto& [own, name] : step.outputs) {
    if (!made.insert(name).second) refuse(index, "makes " + json_quoted(name) + " again");
    check_width(name);
  }
}

// Steps of the agent alone are skipped where options are given: nothing else may want what they give.
void check_agent_only(std::size_t index, const Step& step, std::unordered_set<std::string>& skipped) {
  if (!step.agent_only) {
    for (const auto& [own, name] : step.inputs) {
      if (skipped.count(name) != 0) {
        refuse(index, "reads " + json_quoted(name) + ", which is not made where options are given");
      }
    }
    return;
  }
  bool fits = step.decides.has_value();
  for (const auto& [own, name] : step.outputs) {
    fits = fits && (name.rfind("agent/state.", 0) == 0 || name.rfind("agent/option.", 0) == 0);
    skipped.insert(name);
  }
  if (!fits) refuse(index, "is the agent's alone, and decides nothing or gives more than the agent does");
}

// Takes the decision of a step, if it has one.
void check_decision(std::size_t index, const Step& step, std::size_t total, std::set<std::int64_t>& decided) {
  if (!step.decides) return;
  const auto t = static_cast<std::uint64_t>(*step.decides);
  if (t >= total || !decided.insert(*step.decides).second) {
    refuse(index, "takes a decision that there is not, or takes one again");
  }
  const std::string option = option_name(static_cast<std::size_t>(t));
  const bool given = std::any_of(step.outputs.begin(), step.outputs.end(),
                                 [&](const auto& output) { return output.second == option; });
  if (!given) refuse(index, "takes decision " + std::to_string(t) + " and gives no option");
}

}  // namespace

Plan plan_of_bundle(const Manifest& manifest) {
  Plan plan;
  std::unordered_set<std::string> named;  // a stage takes a tensor as the one that makes it describes it
  const auto add = [&](TensorSpec tensor) {
    if (named.insert(tensor.name).second) plan.tensors.push_back(std::move(tensor));
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
  Tensors tensors;
  for (const TensorSpec& tensor : plan.tensors) tensors[tensor.name] = &tensor;
  check_tensors(plan, tensors, manifest);

  const std::size_t total = manifest.decisions.size();
  std::unordered_set<std::string> made{manifest.input.name, kPenalty, state_name(0)};
  std::unordered_set<std::string> skipped;
  std::set<std::int64_t> decided;
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    for (const std::int64_t t : step.option_decisions) {
      if (decided.count(t) == 0) refuse(i, "needs options before they are chosen");
    }
    check_pieces(i, step, manifest);
    check_names(i, step, tensors, made);
    check_agent_only(i, step, skipped);
    check_decision(i, step, total, decided);
  }
  if (decided.size() != total) refuse("it leaves a decision open");
  if (made.count(manifest.output.name) == 0) refuse("no step makes " + json_quoted(manifest.output.name));
}

}  // namespace rnp
