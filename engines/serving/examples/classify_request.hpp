// From the body of a request to one image and its penalty.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "rnp/manifest.hpp"

namespace examples {

struct ClassifyRequest {
  std::vector<float> image;  // [C, H, W], finite
  float penalty = 0;
};

// {"image": flat or nested numbers, "penalty": p, "target_macs": s}, the last two optional and at most one of them.
// Throws rnp::Error(kInput), which says what was expected.
ClassifyRequest request_from_json(const std::string& body, const rnp::Manifest& manifest);

// Exactly the input's float32 values, little endian. Throws as above.
ClassifyRequest request_from_tensor(const std::string& body, std::optional<double> penalty,
                                    std::optional<double> target_macs, const rnp::Manifest& manifest);

// The agent's own where neither is given. Throws as above.
float penalty_from(std::optional<double> penalty, std::optional<double> target_macs, const rnp::Manifest& manifest);

// Finite float32 values of the size of the input. Throws as above.
std::vector<float> image_from_tensor(const std::string& bytes, const rnp::Manifest& manifest);

// The values of one image.
std::size_t input_values(const rnp::Manifest& manifest);

// Such as "[1, 16, 16]".
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace examples
