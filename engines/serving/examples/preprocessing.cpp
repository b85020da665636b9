#include "preprocessing.hpp"

#include <algorithm>
#include <cmath>

namespace examples {
namespace {

// Whole image to `size`, or its shorter side to `shorter_side` and the middle cut out.
Image fitted(const Image& image, const rnp::Preprocessing& preprocessing) {
  const auto height = static_cast<std::size_t>(preprocessing.size.first);
  const auto width = static_cast<std::size_t>(preprocessing.size.second);
  if (!preprocessing.shorter_side) return resized(image, height, width);

  const double scale =
      static_cast<double>(*preprocessing.shorter_side) / static_cast<double>(std::min(image.height, image.width));
  const auto side = [scale](std::size_t from, std::size_t least) {
    return std::max(static_cast<std::size_t>(static_cast<double>(from) * scale + 1e-6), least);
  };
  const std::size_t full_height = side(image.height, height), full_width = side(image.width, width);
  // Halves go to the even neighbour.
  const auto corner = [](std::size_t full, std::size_t part) {
    return static_cast<std::size_t>(std::nearbyint(static_cast<double>(full - part) / 2));
  };
  return cropped(resized(image, full_height, full_width), corner(full_height, height), corner(full_width, width),
                 height, width);
}

}  // namespace

std::vector<float> input_from_image(const Image& image, const rnp::Preprocessing& preprocessing) {
  const std::size_t channels = preprocessing.colour == "L" ? 1 : 3;
  const Image pixels = fitted(with_channels(image, channels), preprocessing);
  const std::size_t area = pixels.height * pixels.width;
  std::vector<float> input(channels * area);
  for (std::size_t c = 0; c < channels; ++c) {
    const std::size_t from = preprocessing.colour == "BGR" ? channels - 1 - c : c;
    const auto mean = static_cast<float>(preprocessing.mean.at(c));
    const auto std = static_cast<float>(preprocessing.std.at(c));
    for (std::size_t i = 0; i < area; ++i) {
      input[c * area + i] = (static_cast<float>(pixels.pixels[i * channels + from]) / 255.0F - mean) / std;
    }
  }
  return input;
}

}  // namespace examples
