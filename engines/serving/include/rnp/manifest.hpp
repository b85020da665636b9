// The manifests of bundles and engine sets as values; docs/bundle-format.md and docs/engine-sets.md say what each
// means. N batch, C channels, K options (k), T decisions, D agent state. Options count from 1.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace rnp {

enum class DType { kFloat32, kFloat16, kBfloat16, kInt32, kInt64 };

std::size_t byte_size(DType dtype) noexcept;

// A tensor as it lies in memory: C-contiguous, the batch N first. `shape` is without N and at full width.
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  DType dtype = DType::kFloat32;
  std::optional<std::int64_t> follows;  // the decision whose option sets the size of `axis`
  std::int64_t axis = 1;                // counted with N as 0
  std::vector<std::int64_t> sizes;      // by option of that decision

  // The shape without N; `options` has one entry per decision, of which only the followed one is read.
  std::vector<std::int64_t> shape_at(const std::int64_t* options) const;
  // Bytes of one sample at the option that makes it largest. Fits 63 bits: the readers refuse larger tensors.
  std::int64_t largest_bytes() const;

  bool operator==(const TensorSpec& other) const;
};

struct DecisionManifest {
  std::string conv;
  std::vector<std::int64_t> widths;
  std::int64_t stage = 0;
};

struct ConvManifest {
  std::string conv, role, reason;
  std::int64_t macs = 0;
  std::optional<std::int64_t> decision;
  std::optional<std::vector<std::int64_t>> widths;
};

struct BranchManifest {
  std::vector<std::int64_t> input_options;
  std::optional<std::int64_t> output_option;
  std::string file;
  std::int64_t macs = 0, weight_bytes = 0;
};

struct StageManifest {
  std::optional<std::int64_t> decision;
  std::vector<std::int64_t> input_decisions;
  std::vector<TensorSpec> inputs, outputs;
  std::vector<BranchManifest> branches;
};

struct AgentStepManifest {
  std::string file, features;
  std::int64_t macs = 0;
};

struct AgentManifest {
  std::int64_t state_size = 0;
  double penalty = 0;
  std::optional<std::pair<double, double>> penalty_range;
  std::vector<AgentStepManifest> steps;
};

struct FileManifest {
  std::string path;
  std::int64_t bytes = 0;
  std::string sha256;
};

struct CalibrationPoint {
  double penalty = 0, accuracy = 0, macs_share = 0;
  std::vector<std::vector<std::int64_t>> option_counts;
};

struct Calibration {
  std::string data;
  std::int64_t samples = 0;
  double backbone_accuracy = 0, full_accuracy = 0;
  std::vector<CalibrationPoint> points;  // at rising penalties

  // The lowest penalty at which an image costs, on average, this share of the full network's MACs; as in Python.
  // Throws Error(kInput): not above 0 and at most 1, or below what the cheapest point costs.
  double penalty_for(double target_macs) const;
};

struct Preprocessing {
  std::string colour;                                // "L", "RGB" or "BGR"
  std::pair<std::int64_t, std::int64_t> size{0, 0};  // H, W
  std::optional<std::int64_t> shorter_side;
  std::vector<double> mean, std;
};

// Of a bundle. What only people read (verification, precision_report) is checked and not kept.
struct Manifest {
  std::string format_version, producer, precision = "fp32";
  TensorSpec input, output;
  std::int64_t groups = 0, macs = 0;
  AgentManifest agent;
  bool agent_trained = true;
  std::vector<ConvManifest> convolutions;
  std::vector<DecisionManifest> decisions;
  std::vector<StageManifest> stages;
  std::vector<FileManifest> files;
  std::optional<Calibration> calibration;
  std::optional<Preprocessing> preprocessing;
  std::optional<std::vector<std::string>> classes;

  // How many options decision t has.
  std::int64_t option_count(std::size_t t) const { return static_cast<std::int64_t>(decisions[t].widths.size()); }
};

// One graph to run: a branch, an agent step, or a branch with the agent step after it.
struct Piece {
  std::vector<std::int64_t> options;  // in the order of the step's option_decisions
  std::string file;
  std::int64_t macs = 0, weight_bytes = 0;
};

using Names = std::map<std::string, std::string>;

// A place in the run: one of its pieces is run for each sample.
struct Step {
  std::vector<std::int64_t> option_decisions;
  Names inputs, outputs;  // the graph's own name of a tensor → its name in the plan
  std::vector<Piece> pieces;
  std::optional<std::int64_t> decides;
  bool agent_only = false;
  Names in_place;  // output → the input whose memory it may take, by names of the plan
};

struct Plan {
  std::vector<TensorSpec> tensors;
  std::vector<Step> steps;
};

// `engines.json`.
struct EngineSetManifest {
  std::string format_version, producer, backend, bundle_sha256;
  std::map<std::string, std::string> fingerprint;
  Plan plan;
  std::vector<FileManifest> files;
  std::optional<std::int64_t> max_batch;
  std::map<std::string, std::string> build_options, environment;
};

// Names of what the controller itself puts among the tensors of a plan.
inline constexpr const char* kPenalty = "agent/penalty";  // [N]
std::string state_name(std::size_t decision);             // [N, D], before a decision
std::string option_name(std::size_t decision);            // [N] int64 or int32, in 1..k

}  // namespace rnp
