// Images of 8 bits a channel: netpbm files, and resizing as Pillow does it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace examples {

// Rows from the top, channels side by side: [height, width, channels]; 1 channel is grey, 3 are red, green, blue.
struct Image {
  std::size_t height = 0, width = 0, channels = 0;
  std::vector<std::uint8_t> pixels;
};

// P2, P3, P5 and P6 with a maximum of 1 to 255, which is scaled to 255. Nothing is allocated before the bytes are known
// to be there. Throws rnp::Error(kInput).
Image image_from_netpbm(std::string_view bytes);

// Converted to 1 or 3 channels; grey is the luma of ITU-R 601.
Image with_channels(const Image& image, std::size_t channels);

// Bilinear with the filter widened by the reduction, in 22-bit fixed point, the width first: what Pillow's
// BILINEAR gives, within one level where its version 13 and later take the height first.
// Throws rnp::Error(kInput): a size of 0, or more than 2^28 pixels on the way.
Image resized(const Image& image, std::size_t height, std::size_t width);

// The part of `height` x `width` whose upper left corner is at (top, left), and inside the image.
Image cropped(const Image& image, std::size_t top, std::size_t left, std::size_t height, std::size_t width);

// The bytes of a file of at most `max_bytes`. Throws rnp::Error(kInput).
std::string read_file(const std::filesystem::path& path, std::uintmax_t max_bytes);

}  // namespace examples
