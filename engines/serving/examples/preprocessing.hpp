// From an image to a network's input, as the manifest's `preprocessing` says.
#pragma once

#include <vector>

#include "images.hpp"
#include "rnp/manifest.hpp"

namespace examples {

// [C, H, W]. Throws rnp::Error(kInput): too many pixels on the way.
std::vector<float> input_from_image(const Image& image, const rnp::Preprocessing& preprocessing);

}  // namespace examples
