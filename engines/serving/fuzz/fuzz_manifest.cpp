// Bytes through the readers of manifests: whatever they are, they are read or refused by rnp::Error.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine_set_reading.hpp"
#include "json.hpp"
#include "manifest_reading.hpp"
#include "plan.hpp"
#include "rnp/error.hpp"

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

// The canonical form says the same, and is its own.
void check_canonical(const rnp::Json& json) {
  const std::string canonical = rnp::canonical_json(json);
  const rnp::Json again = rnp::parse_json(canonical, "canonical");
  require(again == json, "the canonical form is an equal value");
  require(rnp::canonical_json(again) == canonical, "the canonical form is a fixed point");
}

// A tensor can be asked for its size at every option.
void check_sizes(const rnp::Plan& plan, const rnp::Manifest& manifest) {
  for (const rnp::TensorSpec& tensor : plan.tensors) {
    require(tensor.largest_bytes() > 0, "the largest size is above 0");
    const std::size_t followed = static_cast<std::size_t>(tensor.follows.value_or(0));
    std::vector<std::int64_t> options(manifest.decisions.size(), 1);
    for (std::int64_t option = 1; option <= manifest.option_count(followed); ++option) {
      options[followed] = option;
      std::int64_t bytes = static_cast<std::int64_t>(rnp::byte_size(tensor.dtype));
      for (const std::int64_t size : tensor.shape_at(options.data())) bytes *= size;
      require(bytes > 0 && (bytes <= tensor.largest_bytes() || !tensor.follows),
              "no option takes more than the largest");
    }
  }
}

// What is run of a manifest that was accepted.
void check_manifest(const rnp::Manifest& manifest) {
  const rnp::Plan plan = rnp::plan_of_bundle(manifest);
  check_sizes(plan, manifest);
  rnp::check_plan(plan, manifest);  // a bundle's own plan fits: an error is a defect
  if (!manifest.calibration) return;
  try {
    (void)manifest.calibration->penalty_for(0.5);
  } catch (const rnp::Error& err) {
    require(err.code() == rnp::ErrorCode::kInput, "only the target may be refused");
  }
}

void check_fields(const rnp::Json& json, bool newer) {
  rnp::Manifest manifest;
  try {
    manifest = rnp::manifest_from_json(json, "manifest", newer);
  } catch (const rnp::Error& err) {
    require(err.code() == rnp::ErrorCode::kFields, "a manifest is refused for its fields");
    return;
  }
  check_manifest(manifest);
}

void check_engines(const rnp::Json& json, const rnp::Manifest& sample, bool newer) {
  try {
    const rnp::EngineSetManifest engines = rnp::engine_set_from_json(json, "engines", newer);
    rnp::check_plan(engines.plan, sample);
    check_sizes(engines.plan, sample);
  } catch (const rnp::Error& err) {
    require(err.code() == rnp::ErrorCode::kFields || err.code() == rnp::ErrorCode::kPlan,
            "an engine set is refused for its fields or its plan");
  }
}

// Of one decision with two options, as the engine sets among the seeds are.
rnp::Manifest sample_manifest() {
  rnp::Manifest manifest;
  manifest.input.name = "images";
  manifest.input.shape = {3, 4, 4};
  manifest.output.name = "outputs";
  manifest.output.shape = {2};
  manifest.agent.state_size = 5;
  manifest.decisions.resize(1);
  manifest.decisions[0].widths = {2, 4};
  return manifest;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const rnp::Manifest sample = sample_manifest();
  rnp::Json json;
  try {
    json = rnp::parse_json({reinterpret_cast<const char*>(data), size}, "fuzz");
  } catch (const rnp::Error& err) {
    require(err.code() == rnp::ErrorCode::kJson, "text is refused as JSON");
    return 0;
  }
  check_canonical(json);
  for (const bool newer : {false, true}) {
    check_fields(json, newer);
    check_engines(json, sample, newer);
  }
  return 0;
}
