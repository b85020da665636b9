#include "engine_set_reading.hpp"

#include <set>
#include <string_view>
#include <utility>

#include "manifest_reading.hpp"

namespace rnp {

namespace {

TensorSpec plan_tensor_of(const Field& field) {
  return tensor_of(field, {"float32", "float16", "bfloat16", "int32", "int64"});
}

Piece piece_of(const Field& field) {
  Members members(field);
  Piece piece;
  piece.options = list_of(members["options"], size_of);
  piece.file = text_of(members["file"]);
  piece.macs = count_of(members["macs"]);
  piece.weight_bytes = count_of(members["weight_bytes"]);
  members.close();
  return piece;
}

Step step_of(const Field& field) {
  Members members(field);
  Step step;
  step.option_decisions = list_of(members["option_decisions"], count_of);
  step.inputs = names_of(members["inputs"]);
  step.outputs = names_of(members["outputs"]);
  step.pieces = list_of(members["pieces"], piece_of);
  step.decides = unless_null(members.find("decides"), count_of);
  step.agent_only = value_or(
      members.find("agent_only"), [](const Field& only) { return only.boolean(); }, false);
  step.in_place = value_or(members.find("in_place"), names_of, Names{});
  members.close();
  return step;
}

std::set<std::string_view> values_of(const Names& names) {
  std::set<std::string_view> values;
  for (const auto& [own, name] : names) values.insert(name);
  return values;
}

void check_names(const Field& at, const Step& step, const std::set<std::string_view>& known) {
  const std::set<std::string_view> read = values_of(step.inputs);
  const std::set<std::string_view> made = values_of(step.outputs);
  for (const auto* names : {&read, &made}) {
    for (const std::string_view name : *names) {
      if (known.count(name) == 0) at.refuse("names " + json_quoted(name) + ", which is no tensor of the plan");
    }
  }
  for (const auto& [output, input] : step.in_place) {
    if (made.count(output) == 0 || read.count(input) == 0) {
      at.refuse("makes " + json_quoted(output) + " in place of what it does not read");
    }
  }
}

Plan plan_of(const Field& field) {
  Members members(field);
  Plan plan;
  plan.tensors = list_of(members["tensors"], plan_tensor_of);
  std::set<std::string_view> known;
  for (const TensorSpec& tensor : plan.tensors) {
    if (!known.insert(tensor.name).second) field.refuse("has the tensor " + json_quoted(tensor.name) + " twice");
  }
  plan.steps = list_of(members["steps"], [&](const Field& at) {
    Step step = step_of(at);
    check_names(at, step, known);
    return step;
  });
  members.close();
  return plan;
}

}  // namespace

EngineSetManifest engine_set_from_json(const Json& json, const std::string& where, bool newer) {
  const Field field(json, where, newer);
  Members members(field);
  members.find("engines_sha256");
  EngineSetManifest engines;
  engines.format_version = text_of(members["format_version"]);
  engines.producer = text_of(members["producer"]);
  members["backend"].one_of({"onnxruntime", "tensorrt"});
  engines.backend = text_of(members["backend"]);
  engines.bundle_sha256 = sha256_of(members["bundle_sha256"]);
  engines.fingerprint = names_of(members["fingerprint"]);
  engines.plan = plan_of(members["plan"]);
  engines.files = list_of(members["files"], file_of);
  for (const std::string_view key : {"decisions", "decisions_equal"}) {
    value_or(members.find(key), count_of, std::int64_t{0});
  }
  unless_null(members.find("max_deviation"), number_of);
  engines.max_batch = unless_null(members.find("max_batch"), size_of);
  engines.build_options = value_or(members.find("build_options"), names_of, Names{});
  engines.environment = value_or(members.find("environment"), names_of, Names{});
  members.close();

  std::vector<std::string> used;
  for (const Step& step : engines.plan.steps) {
    for (const Piece& piece : step.pieces) used.push_back(piece.file);
  }
  require_listed(field, engines.files, used);
  return engines;
}

}  // namespace rnp
