// What a run is given, checked before anything runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rnp/controller.hpp"

namespace rnp {

// Throws Error(kInput): null, an empty batch, more than can be addressed, NaN or infinity. Values of images on a
// device are not looked at.
void check_images(const float* images, std::size_t batch, const Manifest& manifest, bool on_host);

// Options [N, T], a copy; zeros where none are given. Throws Error(kInput): out of range.
std::vector<std::int64_t> checked_options(const std::int64_t* options, std::size_t batch, const Manifest& manifest);

// Prices [N]: those given, the one that a target takes, or the agent's own. Throws Error(kInput): not finite, a target
// beside anything else, without a calibration, or out of its reach.
std::vector<float> checked_penalties(const RunOptions& options, std::size_t batch, const Manifest& manifest);

}  // namespace rnp
