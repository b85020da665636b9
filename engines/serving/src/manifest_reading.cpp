#include "manifest_reading.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <utility>

#include "manifest_fit.hpp"
#include "rnp/error.hpp"
#include "saturated.hpp"

namespace rnp {

namespace {

// A tensor of one sample has fewer values.
constexpr std::int64_t kMaxValues = std::int64_t{1} << 31;

std::pair<double, double> two_numbers_of(const Field& field) {
  const std::vector<double> values = list_of(field, number_of, 2, 2);
  return {values[0], values[1]};
}

std::vector<std::int64_t> sizes_of(const Field& field) { return list_of(field, size_of); }

TensorSpec network_tensor_of(const Field& field) { return tensor_of(field, {"float32", "float16", "bfloat16"}); }

DecisionManifest decision_of(const Field& field) {
  Members members(field);
  DecisionManifest decision;
  decision.conv = text_of(members["conv"]);
  decision.widths = list_of(members["widths"], size_of, 2);
  decision.stage = size_of(members["stage"]);
  members.close();
  if (!rises(decision.widths)) field.refuse("has widths that do not rise");
  return decision;
}

ConvManifest conv_of(const Field& field) {
  Members members(field);
  ConvManifest conv;
  conv.conv = text_of(members["conv"]);
  members["role"].one_of({"prunable", "follower", "whole"});
  conv.role = text_of(members["role"]);
  conv.reason = text_of(members["reason"]);
  conv.macs = count_of(members["macs"]);
  conv.decision = unless_null(members.find("decision"), count_of);
  conv.widths = unless_null(members.find("widths"), sizes_of);
  members.close();
  return conv;
}

BranchManifest branch_of(const Field& field) {
  Members members(field);
  BranchManifest branch;
  branch.input_options = sizes_of(members["input_options"]);
  branch.output_option = unless_null(members["output_option"], size_of);
  branch.file = text_of(members["file"]);
  branch.macs = count_of(members["macs"]);
  branch.weight_bytes = count_of(members["weight_bytes"]);
  members.close();
  return branch;
}

StageManifest stage_of(const Field& field) {
  Members members(field);
  StageManifest stage;
  stage.decision = unless_null(members["decision"], count_of);
  stage.input_decisions = list_of(members["input_decisions"], count_of);
  stage.inputs = list_of(members["inputs"], network_tensor_of, 1);
  stage.outputs = list_of(members["outputs"], network_tensor_of);
  stage.branches = list_of(members["branches"], branch_of, 1);
  members.close();
  return stage;
}

AgentStepManifest agent_step_of(const Field& field) {
  Members members(field);
  AgentStepManifest step;
  step.file = text_of(members["file"]);
  step.features = text_of(members["features"]);
  step.macs = count_of(members["macs"]);
  members.close();
  return step;
}

AgentManifest agent_of(const Field& field) {
  Members members(field);
  AgentManifest agent;
  agent.state_size = size_of(members["state_size"]);
  agent.penalty = number_of(members["penalty"]);
  agent.penalty_range = unless_null(members.find("penalty_range"), two_numbers_of);
  agent.steps = list_of(members["steps"], agent_step_of);
  members.close();
  return agent;
}

CalibrationPoint point_of(const Field& field) {
  Members members(field);
  CalibrationPoint point;
  point.penalty = number_of(members["penalty"]);
  point.accuracy = number_of(members["accuracy"]);
  point.macs_share = number_of(members["macs_share"]);
  point.option_counts =
      list_of(members["option_counts"], [](const Field& counts) { return list_of(counts, count_of); });
  members.close();
  return point;
}

Calibration calibration_of(const Field& field) {
  Members members(field);
  Calibration calibration;
  calibration.data = text_of(members["data"]);
  calibration.samples = count_of(members["samples"]);
  calibration.backbone_accuracy = number_of(members["backbone_accuracy"]);
  calibration.full_accuracy = number_of(members["full_accuracy"]);
  calibration.points = list_of(members["points"], point_of, 1);
  members.close();
  for (std::size_t i = 1; i < calibration.points.size(); ++i) {
    if (!(calibration.points[i - 1].penalty < calibration.points[i].penalty)) {
      field.refuse("has penalties that do not rise");
    }
  }
  return calibration;
}

double positive_of(const Field& field) {
  const double value = field.number();
  if (!(value > 0)) field.refuse("is not above 0");
  return value;
}

Preprocessing preprocessing_of(const Field& field) {
  Members members(field);
  Preprocessing made;
  members["colour"].one_of({"L", "RGB", "BGR"});
  made.colour = text_of(members["colour"]);
  const std::vector<std::int64_t> size = list_of(members["size"], size_of, 2, 2);
  made.size = {size[0], size[1]};
  made.shorter_side = unless_null(members.find("shorter_side"), size_of);
  made.mean = list_of(members["mean"], number_of);
  made.std = list_of(members["std"], positive_of);
  members.close();
  const std::size_t channels = made.colour == "L" ? 1 : 3;
  if (made.mean.size() != channels || made.std.size() != channels) {
    field.refuse("needs " + std::to_string(channels) + " values of mean and std for its colour");
  }
  if (made.shorter_side && *made.shorter_side < std::max(size[0], size[1])) {
    field.refuse("has a shorter_side below the size to cut out");
  }
  return made;
}

void check_numbers_or_nulls(Members& members, std::initializer_list<std::string_view> keys) {
  for (const std::string_view key : keys) unless_null(members.find(key), number_of);
}

void check_verification(const Field& field) {
  Members members(field);
  count_of(members["samples"]);
  number_of(members["tolerance"]);
  for (const std::string_view key : {"branches", "paths", "agent_decisions", "agent_decisions_equal"}) {
    value_or(members.find(key), count_of, std::int64_t{0});
  }
  check_numbers_or_nulls(members, {"max_branch_deviation", "max_path_deviation"});
  unless_null(members.find("worst_branch"), text_of);
  members.close();
}

bool check_at_penalty(const Field& field) {
  Members members(field);
  number_of(members["penalty"]);
  number_of(members["decisions_equal"]);
  check_numbers_or_nulls(members, {"accuracy_fp32", "accuracy"});
  members.close();
  return true;
}

bool check_precision_report(const Field& field) {
  Members members(field);
  unless_null(members["data"], text_of);
  for (const std::string_view key : {"images", "decisions", "decisions_equal"}) count_of(members[key]);
  list_of(members["penalties"], number_of);
  for (const std::string_view key : {"margin_median", "margin_p5", "drift_median", "drift_p99", "at_risk",
                                     "output_drift_max", "output_drift_mean"}) {
    number_of(members[key]);
  }
  check_numbers_or_nulls(members, {"accuracy_fp32", "accuracy"});
  if (const std::optional<Field> prices = members.find("by_penalty")) list_of(*prices, check_at_penalty);
  members.close();
  return true;
}

void read_network(Members& members, Manifest& manifest) {
  manifest.input = std::move(list_of(members["inputs"], network_tensor_of, 1, 1)[0]);
  manifest.output = std::move(list_of(members["outputs"], network_tensor_of, 1, 1)[0]);
  if (const std::optional<Field> precision = members.find("precision")) {
    precision->one_of({"fp32", "fp16", "bf16", "int8"});
    manifest.precision = precision->text();
  }
  manifest.groups = members["groups"].integer(2, std::numeric_limits<std::int32_t>::max());
  manifest.macs = members["macs"].integer(1, std::numeric_limits<std::int64_t>::max());
  manifest.agent = agent_of(members["agent"]);
  manifest.agent_trained = value_or(
      members.find("agent_trained"), [](const Field& field) { return field.boolean(); }, true);
  manifest.convolutions = list_of(members["convolutions"], conv_of);
  manifest.decisions = list_of(members["decisions"], decision_of, 1);
  manifest.stages = list_of(members["stages"], stage_of, 2);
}

}  // namespace

TensorSpec tensor_of(const Field& field, std::initializer_list<std::string_view> dtypes) {
  static constexpr std::array<DType, 5> kDTypes = {DType::kFloat32, DType::kFloat16, DType::kBfloat16, DType::kInt32,
                                                   DType::kInt64};
  Members members(field);
  TensorSpec tensor;
  tensor.name = text_of(members["name"]);
  tensor.shape = sizes_of(members["shape"]);
  if (const std::optional<Field> dtype = members.find("dtype")) tensor.dtype = kDTypes.at(dtype->one_of(dtypes));
  tensor.follows = unless_null(members.find("follows"), count_of);
  tensor.axis = value_or(members.find("axis"), size_of, std::int64_t{1});
  tensor.sizes = value_or(members.find("sizes"), sizes_of, std::vector<std::int64_t>{});
  members.close();

  const auto axis = static_cast<std::size_t>(tensor.axis);
  std::vector<std::int64_t> largest = tensor.shape;
  if (!tensor.sizes.empty() && axis <= largest.size()) {
    largest[axis - 1] = std::max(largest[axis - 1], *std::max_element(tensor.sizes.begin(), tensor.sizes.end()));
  }
  if (saturated_product(largest) >= kMaxValues) field.refuse("has 2^31 values a sample or more");
  return tensor;
}

FileManifest file_of(const Field& field) {
  Members members(field);
  FileManifest file;
  file.path = text_of(members["path"]);
  file.bytes = count_of(members["bytes"]);
  file.sha256 = sha256_of(members["sha256"]);
  members.close();
  return file;
}

void require_listed(const Field& at, const std::vector<FileManifest>& files, const std::vector<std::string>& used) {
  std::set<std::string_view> listed;
  for (const FileManifest& file : files) {
    if (!listed.insert(file.path).second) at.refuse("lists " + json_quoted(file.path) + " twice");
  }
  for (const std::string& path : used) {
    if (listed.count(path) == 0) at.refuse("uses " + json_quoted(path) + ", which is not listed under files");
  }
}

Manifest manifest_from_json(const Json& json, const std::string& where, bool newer) {
  const Field field(json, where, newer);
  Members members(field);
  members.find("manifest_sha256");
  Manifest manifest;
  manifest.format_version = text_of(members["format_version"]);
  manifest.producer = text_of(members["producer"]);
  read_network(members, manifest);
  manifest.files = list_of(members["files"], file_of);
  check_verification(members["verification"]);
  unless_null(members.find("precision_report"), check_precision_report);
  manifest.calibration = unless_null(members.find("calibration"), calibration_of);
  manifest.preprocessing = unless_null(members.find("preprocessing"), preprocessing_of);
  manifest.classes =
      unless_null(members.find("classes"), [](const Field& classes) { return list_of(classes, text_of); });
  members.close();
  check_fit(manifest, field);
  return manifest;
}

}  // namespace rnp
