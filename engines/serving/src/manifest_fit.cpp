#include "manifest_fit.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "manifest_reading.hpp"
#include "saturated.hpp"

namespace rnp {

namespace {

// What the controller puts among the tensors of a plan is named so.
constexpr std::string_view kAgentPrefix = "agent/";
constexpr const char* kWeightsFile = "weights.bin";

using Known = std::unordered_map<std::string_view, const TensorSpec*>;

bool contains(const std::vector<std::int64_t>& sorted, std::int64_t value) {
  return std::binary_search(sorted.begin(), sorted.end(), value);
}

// One manifest while it is checked.
class Fit {
 public:
  Fit(const Manifest& manifest, const Field& at) : manifest_(manifest), at_(at) {}

  void check() {
    check_decisions();
    for (const TensorSpec* end : {&manifest_.input, &manifest_.output}) {
      if (end->dtype != DType::kFloat32 || end->follows) {
        at_.refuse("has an input or output that is not float32, or follows a decision: " + json_quoted(end->name));
      }
    }
    known_.emplace(manifest_.input.name, &manifest_.input);
    for (std::size_t s = 0; s < manifest_.stages.size(); ++s) check_stage(s);
    const auto output = known_.find(manifest_.output.name);
    if (output == known_.end() || !(*output->second == manifest_.output)) {
      at_.refuse("has an output " + json_quoted(manifest_.output.name) + " that no stage makes as described");
    }
    for (const auto& [name, tensor] : known_) {
      if (name.substr(0, kAgentPrefix.size()) == kAgentPrefix) {
        at_.refuse("has a tensor " + json_quoted(name) + ", which is a name of the agent's");
      }
    }
    check_files();
    check_description();
  }

 private:
  void check_decisions() {
    const std::size_t total = manifest_.decisions.size();
    if (manifest_.stages.size() != total + 1 || manifest_.agent.steps.size() != total) {
      at_.refuse("has " + std::to_string(total) +
                 " decisions, which need one stage more and as many agent steps; it has " +
                 std::to_string(manifest_.stages.size()) + " and " + std::to_string(manifest_.agent.steps.size()));
    }
    std::set<std::tuple<std::string_view, std::int64_t, std::vector<std::int64_t>>> listed;
    for (const ConvManifest& conv : manifest_.convolutions) {
      if (conv.decision && conv.widths) listed.emplace(conv.conv, *conv.decision, *conv.widths);
    }
    std::int64_t most = 0;
    for (std::size_t t = 0; t < total; ++t) {
      const DecisionManifest& decision = manifest_.decisions[t];
      const auto index = static_cast<std::int64_t>(t);
      if (decision.stage != index + 1) at_.refuse("has a decision " + std::to_string(t) + " that opens another stage");
      if (listed.count({decision.conv, index, decision.widths}) == 0) {
        at_.refuse("has convolutions with other widths of decision " + std::to_string(t));
      }
      most = std::max(most, manifest_.option_count(t));
    }
    if (most != manifest_.groups) {
      at_.refuse("has groups " + std::to_string(manifest_.groups) + ", and a decision of " + std::to_string(most) +
                 " options");
    }
  }

  void check_stage(std::size_t s) {
    const StageManifest& stage = manifest_.stages[s];
    const auto index = static_cast<std::int64_t>(s);
    const std::int64_t opener = stage.decision.value_or(-1);  // a decision is 0 at least
    if (opener != index - 1) refuse(s, "is opened by another decision");
    if (!rises(stage.input_decisions) ||
        (!stage.input_decisions.empty() && stage.input_decisions.back() >= index - 1)) {
      refuse(s, "has input decisions that are not earlier ones, rising");
    }
    for (const TensorSpec& tensor : stage.inputs) check_input(s, stage, tensor);
    if (s > 0) check_features(s);
    for (const TensorSpec& tensor : stage.outputs) check_output(s, stage, tensor);
    check_branches(s, stage);
  }

  void check_input(std::size_t s, const StageManifest& stage, const TensorSpec& tensor) {
    const auto made = known_.find(tensor.name);
    if (made == known_.end() || !(*made->second == tensor)) {
      refuse(s, "takes " + json_quoted(tensor.name) + ", which nothing before makes so");
    }
    if (tensor.follows && !contains(stage.input_decisions, *tensor.follows)) {
      refuse(s, "takes " + json_quoted(tensor.name) + " but not the option it follows");
    }
  }

  void check_features(std::size_t s) {
    const std::string& name = manifest_.agent.steps[s - 1].features;
    const auto features = known_.find(name);
    if (features == known_.end() || features->second->shape.size() != 1 || features->second->follows) {
      refuse(s, "is opened by a decision whose features " + json_quoted(name) + " nothing before makes");
    }
  }

  void check_output(std::size_t s, const StageManifest& stage, const TensorSpec& tensor) {
    if (!known_.emplace(tensor.name, &tensor).second) refuse(s, "makes " + json_quoted(tensor.name) + " again");
    if (!tensor.follows) return;
    if (!contains(stage.input_decisions, *tensor.follows) && tensor.follows != stage.decision) {
      refuse(s, "gives " + json_quoted(tensor.name) + " without the option it follows");
    }
    const auto axis = static_cast<std::size_t>(tensor.axis);
    const bool fits = static_cast<std::int64_t>(tensor.sizes.size()) ==
                          manifest_.option_count(static_cast<std::size_t>(*tensor.follows)) &&
                      axis <= tensor.shape.size() && tensor.shape[axis - 1] == tensor.sizes.back();
    if (!fits || !rises(tensor.sizes)) refuse(s, "gives " + json_quoted(tensor.name) + " in sizes that do not fit");
  }

  void check_branches(std::size_t s, const StageManifest& stage) {
    std::vector<std::int64_t> most;
    for (const std::int64_t t : stage.input_decisions)
      most.push_back(manifest_.option_count(static_cast<std::size_t>(t)));
    if (stage.decision) most.push_back(manifest_.option_count(static_cast<std::size_t>(*stage.decision)));
    const std::int64_t wanted = saturated_product(most);
    if (static_cast<std::int64_t>(stage.branches.size()) != wanted) {
      refuse(s, "has " + std::to_string(stage.branches.size()) + " of " + std::to_string(wanted) + " branches");
    }
    std::set<std::vector<std::int64_t>> seen;
    for (const BranchManifest& branch : stage.branches) {
      std::vector<std::int64_t> options = branch.input_options;
      const bool own = branch.output_option.has_value();
      if (own) options.push_back(*branch.output_option);
      bool fits = own == stage.decision.has_value() && options.size() == most.size();
      for (std::size_t i = 0; fits && i < options.size(); ++i) fits = options[i] <= most[i];
      if (!fits || !seen.insert(std::move(options)).second) {
        refuse(s, "has a branch for options that it does not have, or two for the same: " + json_quoted(branch.file));
      }
    }
  }

  void check_files() {
    std::vector<std::string> used{kWeightsFile};
    for (const AgentStepManifest& step : manifest_.agent.steps) used.push_back(step.file);
    for (const StageManifest& stage : manifest_.stages) {
      for (const BranchManifest& branch : stage.branches) used.push_back(branch.file);
    }
    require_listed(at_, manifest_.files, used);
    for (std::size_t i = 1; i < used.size(); ++i) {
      if (!is_graph(used[i])) at_.refuse("uses " + json_quoted(used[i]) + " as a graph, which is no .onnx file");
    }
  }

  void check_description() {
    const std::optional<Preprocessing>& made = manifest_.preprocessing;
    if (made) {
      const std::vector<std::int64_t> shape{static_cast<std::int64_t>(made->mean.size()), made->size.first,
                                            made->size.second};
      if (shape != manifest_.input.shape)
        at_.refuse("has preprocessing that makes images of another shape than the input's");
    }
    if (manifest_.classes &&
        static_cast<std::int64_t>(manifest_.classes->size()) != saturated_product(manifest_.output.shape)) {
      at_.refuse("has " + std::to_string(manifest_.classes->size()) + " classes, and outputs of another size");
    }
  }

  [[noreturn]] void refuse(std::size_t s, const std::string& why) const {
    at_.refuse("stage " + std::to_string(s) + " " + why);
  }

  const Manifest& manifest_;
  const Field& at_;
  Known known_;
};

}  // namespace

bool is_graph(std::string_view path) noexcept {
  constexpr std::string_view kSuffix = ".onnx";
  return path.size() >= kSuffix.size() && path.substr(path.size() - kSuffix.size()) == kSuffix;
}

void check_fit(const Manifest& manifest, const Field& at) { Fit(manifest, at).check(); }

}  // namespace rnp
