#include "run_inputs.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "memory.hpp"
#include "rnp/error.hpp"

namespace rnp {
namespace {

std::string wanted(const Manifest& manifest) {
  std::string shape = "float32 [N";
  for (const std::int64_t size : manifest.input.shape) shape += ", " + std::to_string(size);
  return shape + "]";
}

// Looks at exponents, which compilers do in vectors; asking each value by itself takes several times as long.
bool all_finite(const float* values, std::size_t count) {
  constexpr std::uint32_t kExponent = 0x7f800000;
  std::uint32_t found = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, values + i, sizeof bits);
    found |= static_cast<std::uint32_t>((bits & kExponent) == kExponent);
  }
  return found == 0;
}

std::size_t values_of(const TensorSpec& tensor) {
  return static_cast<std::size_t>(tensor.largest_bytes()) / byte_size(tensor.dtype);
}

double wanted_penalty(const RunOptions& options, const Manifest& manifest) {
  if (!options.target_macs) return options.penalty ? *options.penalty : manifest.agent.penalty;
  if (options.penalty || options.penalties != nullptr || options.options != nullptr) {
    throw Error(ErrorCode::kInput, "target_macs is given beside a penalty or options; pass one of them");
  }
  if (!manifest.calibration) {
    throw Error(ErrorCode::kInput,
                "target_macs needs a calibration, which this bundle lacks: rnp-train makes one, and rnp-export keeps "
                "it; or pass a penalty");
  }
  return manifest.calibration->penalty_for(*options.target_macs);
}

}  // namespace

void check_images(const float* images, std::size_t batch, const Manifest& manifest, bool on_host) {
  if (images == nullptr) throw Error(ErrorCode::kInput, "images are null; pass " + wanted(manifest));
  if (batch == 0) {
    throw Error(ErrorCode::kInput, "images are an empty batch; pass at least one image, " + wanted(manifest));
  }
  const std::size_t values = values_of(manifest.input);
  bytes_of(batch, values * sizeof(float));
  bytes_of(batch, values_of(manifest.output) * sizeof(float));
  bytes_of(batch, (manifest.decisions.size() + 1) * sizeof(std::int64_t));
  if (!on_host) return;
  for (std::size_t i = 0; i < batch; ++i) {
    if (!all_finite(images + i * values, values)) {
      throw Error(ErrorCode::kInput, "image " + std::to_string(i) + " holds NaN or infinity; check the preprocessing");
    }
  }
}

std::vector<std::int64_t> checked_options(const std::int64_t* options, std::size_t batch, const Manifest& manifest) {
  const std::size_t decisions = manifest.decisions.size();
  if (options == nullptr) return std::vector<std::int64_t>(batch * decisions, 0);
  std::vector<std::int64_t> given(options, options + batch * decisions);
  bool fits = true, alike = true;
  for (std::size_t i = 0; i < given.size(); ++i) {
    fits = fits && given[i] >= 1 && given[i] <= manifest.option_count(i % decisions);
  }
  if (fits) return given;
  const auto [low, high] = std::minmax_element(given.begin(), given.end());
  std::string counts;
  for (std::size_t t = 0; t < decisions; ++t) {
    counts += (t == 0 ? "" : ", ") + std::to_string(manifest.option_count(t));
    alike = alike && manifest.option_count(t) == manifest.option_count(0);
  }
  throw Error(ErrorCode::kInput, "options range over " + std::to_string(*low) + ".." + std::to_string(*high) +
                                     "; this network takes 1.." + std::to_string(manifest.groups) +
                                     (alike ? "" : ", by decision 1..[" + counts + "]"));
}

std::vector<float> checked_penalties(const RunOptions& options, std::size_t batch, const Manifest& manifest) {
  if (options.penalty && options.penalties != nullptr) {
    throw Error(ErrorCode::kInput, "penalty is given beside penalties; pass one of them");
  }
  const double wanted = wanted_penalty(options, manifest);
  // A double that float32 cannot hold must not be cast to it.
  const bool fits = std::abs(wanted) <= static_cast<double>(std::numeric_limits<float>::max());
  std::vector<float> prices(batch, fits ? static_cast<float>(wanted) : std::numeric_limits<float>::infinity());
  if (options.penalties != nullptr) prices.assign(options.penalties, options.penalties + batch);
  if (!all_finite(prices.data(), batch)) {
    throw Error(ErrorCode::kInput, "penalty is not finite; pass one number, or one per image");
  }
  return prices;
}

}  // namespace rnp
