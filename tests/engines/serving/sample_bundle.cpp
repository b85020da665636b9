#include "sample_bundle.hpp"

#include <stdlib.h>

#include <fstream>
#include <sstream>
#include <stdexcept>

#include "sha256.hpp"

namespace rnp::test {

namespace {

constexpr const char* kGraphs[] = {"agent/step_00.onnx", "stages/00/full.onnx", "stages/01/out1.onnx",
                                   "stages/01/out2.onnx"};

std::string listed(const std::string& path) {
  return R"({"path":")" + path + R"(","bytes":)" + std::to_string(path.size()) + R"(,"sha256":")" + sha256_hex(path) +
         "\"}";
}

std::string all_listed() {
  std::string files = listed("weights.bin");
  for (const char* graph : kGraphs) files += "," + listed(graph);
  return "[" + files + "]";
}

constexpr const char* kManifest = R"({
  "format_version": "1.0", "producer": "test",
  "inputs": [{"name": "images", "shape": [3, 4, 4]}],
  "outputs": [{"name": "outputs", "shape": [2], "dtype": "float32", "follows": null, "axis": 1, "sizes": []}],
  "precision": "fp32", "groups": 2, "macs": 1000,
  "agent": {"state_size": 5, "penalty": 0.25, "penalty_range": [0, 1.5],
            "steps": [{"file": "agent/step_00.onnx", "features": "pooled", "macs": 7}]},
  "agent_trained": true,
  "convolutions": [
    {"conv": "stem", "role": "whole", "reason": "first", "macs": 400},
    {"conv": "body", "role": "prunable", "reason": "", "macs": 600, "decision": 0, "widths": [2, 4]}],
  "decisions": [{"conv": "body", "widths": [2, 4], "stage": 1}],
  "stages": [
    {"decision": null, "input_decisions": [], "inputs": [{"name": "images", "shape": [3, 4, 4]}],
     "outputs": [{"name": "x", "shape": [6, 4, 4]}, {"name": "pooled", "shape": [6]}],
     "branches": [{"input_options": [], "output_option": null, "file": "stages/00/full.onnx", "macs": 400,
                   "weight_bytes": 64}]},
    {"decision": 0, "input_decisions": [], "inputs": [{"name": "x", "shape": [6, 4, 4]}],
     "outputs": [{"name": "outputs", "shape": [2]},
                 {"name": "y", "shape": [4, 4, 4], "follows": 0, "axis": 1, "sizes": [2, 4]}],
     "branches": [{"input_options": [], "output_option": 1, "file": "stages/01/out1.onnx", "macs": 300,
                   "weight_bytes": 32},
                  {"input_options": [], "output_option": 2, "file": "stages/01/out2.onnx", "macs": 600,
                   "weight_bytes": 64}]}],
  "verification": {"samples": 2, "tolerance": 0.0001, "branches": 3, "max_branch_deviation": 1e-07,
                   "worst_branch": "stages/01/out1.onnx", "paths": 2, "max_path_deviation": null,
                   "agent_decisions": 2, "agent_decisions_equal": 2},
  "precision_report": null,
  "calibration": {"data": "test", "samples": 10, "backbone_accuracy": 0.9, "full_accuracy": 0.95, "points": [
    {"penalty": -0.5, "accuracy": 0.9, "macs_share": 1, "option_counts": [[0, 10]]},
    {"penalty": 0.5, "accuracy": 0.8, "macs_share": 0.7, "option_counts": [[10, 0]]}]},
  "preprocessing": {"colour": "RGB", "size": [4, 4], "shorter_side": 5, "mean": [0, 0.5, 0], "std": [1, 1, 0.5]},
  "classes": ["cat", "dog"],
  "files": )";

constexpr const char* kEngines = R"({
  "format_version": "1.0", "producer": "test", "backend": "onnxruntime",
  "bundle_sha256": "0000000000000000000000000000000000000000000000000000000000000000",
  "fingerprint": {"machine": "abacus"}, "max_batch": null, "build_options": {"a": "b"},
  "plan": {
    "tensors": [
      {"name": "agent/penalty", "shape": []}, {"name": "agent/state.0", "shape": [5]},
      {"name": "agent/state.1", "shape": [5]}, {"name": "agent/option.0", "shape": [], "dtype": "int64"},
      {"name": "images", "shape": [3, 4, 4]}, {"name": "x", "shape": [8, 4, 4]}, {"name": "outputs", "shape": [2]},
      {"name": "y", "shape": [4, 4, 4], "follows": 0, "axis": 1, "sizes": [2, 4]}],
    "steps": [
      {"option_decisions": [], "inputs": {"i": "images", "s": "agent/state.0", "p": "agent/penalty"},
       "outputs": {"x": "x", "o": "agent/option.0", "n": "agent/state.1"}, "decides": 0, "agent_only": false,
       "pieces": [{"options": [], "file": "stages/00/full.onnx", "macs": 400, "weight_bytes": 64}]},
      {"option_decisions": [0], "inputs": {"x": "x"}, "outputs": {"outputs": "outputs", "y": "y"},
       "in_place": {"y": "x"},
       "pieces": [{"options": [1], "file": "stages/01/out1.onnx", "macs": 300, "weight_bytes": 32},
                  {"options": [2], "file": "stages/01/out2.onnx", "macs": 600, "weight_bytes": 64}]}]},
  "decisions": 2, "decisions_equal": 2, "max_deviation": 0.0, "environment": {},
  "files": )";

Json& member(Json& value, const std::string& key) {
  if (Json::Array* array = value.array()) return array->at(std::stoul(key));
  return (*value.object())[key];
}

std::string save(const std::filesystem::path& file, Json value, const char* hash_key) {
  (*value.object())[hash_key] = Json(canonical_sha256(value, hash_key));
  std::string bytes = canonical_json(value);
  write_file(file, bytes);
  return bytes;
}

void save_files(const std::filesystem::path& folder) {
  write_file(folder / "weights.bin", "weights.bin");
  for (const char* graph : kGraphs) write_file(folder / graph, graph);
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "rnp-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder can be made");
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Json sample_manifest() { return parse_json(kManifest + all_listed() + "}", "sample"); }

Json sample_engines() { return parse_json(kEngines + all_listed() + "}", "sample"); }

void write_file(const std::filesystem::path& file, const std::string& bytes) {
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << bytes;
}

std::string save_manifest(const std::filesystem::path& folder, Json manifest) {
  return save(folder / "manifest.json", std::move(manifest), "manifest_sha256");
}

std::string save_engines(const std::filesystem::path& folder, Json engines) {
  return save(folder / "engines.json", std::move(engines), "engines_sha256");
}

void save_bundle(const std::filesystem::path& folder, Json manifest) {
  save_files(folder);
  save_manifest(folder, std::move(manifest));
}

void save_engine_set(const std::filesystem::path& folder, Json engines) {
  save_files(folder);
  at(engines, "bundle_sha256") = Json(sha256_hex(save_manifest(folder, sample_manifest())));
  save_engines(folder, std::move(engines));
}

Json& at(Json& value, const std::string& place) {
  Json* found = &value;
  std::istringstream parts(place);
  for (std::string part; std::getline(parts, part, '/');) found = &member(*found, part);
  return *found;
}

}  // namespace rnp::test
