#include "images.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>

#include "rnp/error.hpp"

namespace examples {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw rnp::Error(rnp::ErrorCode::kInput, message); }

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// The numbers of a netpbm file, one after another.
class NetpbmReader {
 public:
  explicit NetpbmReader(std::string_view bytes) : bytes_(bytes) {}

  std::uint32_t number(const char* what, std::uint32_t largest) {
    skip_space();
    if (at_ == bytes_.size()) refuse(std::string("the image ends before its ") + what);
    std::uint32_t value = 0;
    const std::size_t start = at_;
    while (at_ < bytes_.size() && bytes_[at_] >= '0' && bytes_[at_] <= '9') {
      value = value * 10 + static_cast<std::uint32_t>(bytes_[at_++] - '0');
      if (value > largest) {
        refuse(std::string("the image's ") + what + " is above " + std::to_string(largest));
      }
    }
    if (at_ == start || !(at_ == bytes_.size() || is_space(bytes_[at_]) || bytes_[at_] == '#')) {
      refuse(std::string("the image's ") + what + " is no number");
    }
    return value;
  }

  // After the single space that ends the header.
  std::string_view raster() {
    if (at_ == bytes_.size() || !is_space(bytes_[at_])) refuse("the image's header is not followed by a space");
    return bytes_.substr(at_ + 1);
  }

  std::size_t left() const { return bytes_.size() - at_; }

  void skip(std::size_t count) { at_ += count; }

 private:
  void skip_space() {
    while (at_ < bytes_.size() && (is_space(bytes_[at_]) || bytes_[at_] == '#')) {
      if (bytes_[at_] == '#') {
        while (at_ < bytes_.size() && bytes_[at_] != '\n' && bytes_[at_] != '\r') ++at_;
      } else {
        ++at_;
      }
    }
  }

  std::string_view bytes_;
  std::size_t at_ = 0;
};

// value ÷ maximum × 255, rounded to nearest, ties to even.
std::vector<std::uint8_t> scaled_values(std::uint32_t maximum) {
  std::vector<std::uint8_t> scaled(maximum + 1);
  for (std::uint32_t value = 0; value <= maximum; ++value) {
    scaled[value] = static_cast<std::uint8_t>(std::nearbyint(value / static_cast<double>(maximum) * 255));
  }
  return scaled;
}

// What one output pixel takes of the input along an axis.
struct Taps {
  std::size_t first = 0;
  std::vector<std::int32_t> weights;  // of 2^22
};

constexpr int kWeightBits = 22;

std::vector<Taps> bilinear_taps(std::size_t from, std::size_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double reach = std::max(scale, 1.0);  // the triangle's half base, in input pixels
  std::vector<Taps> taps(to);
  for (std::size_t out = 0; out < to; ++out) {
    const double centre = (static_cast<double>(out) + 0.5) * scale;
    const auto first = static_cast<std::size_t>(std::max(centre - reach + 0.5, 0.0));
    const std::size_t last = std::min(static_cast<std::size_t>(centre + reach + 0.5), from);
    std::vector<double> weights;
    double sum = 0;
    for (std::size_t in = first; in < last; ++in) {
      const double distance = std::abs((static_cast<double>(in) - centre + 0.5) / reach);
      weights.push_back(distance < 1 ? 1 - distance : 0);
      sum += weights.back();
    }
    taps[out].first = first;
    for (const double weight : weights) {
      taps[out].weights.push_back(static_cast<std::int32_t>(0.5 + weight / sum * (1 << kWeightBits)));
    }
  }
  return taps;
}

// Along the axis whose neighbours lie `step` values apart; `lines` such axes start at `line_start(line)`.
template <typename StartIn, typename StartOut>
void resample(const std::vector<std::uint8_t>& from, std::vector<std::uint8_t>& to, const std::vector<Taps>& taps,
              std::size_t step, std::size_t lines, StartIn start_in, StartOut start_out) {
  for (std::size_t line = 0; line < lines; ++line) {
    for (std::size_t out = 0; out < taps.size(); ++out) {
      std::int32_t sum = 1 << (kWeightBits - 1);
      std::size_t at = start_in(line) + taps[out].first * step;
      for (const std::int32_t weight : taps[out].weights) {
        sum += from[at] * weight;
        at += step;
      }
      to[start_out(line) + out * step] = static_cast<std::uint8_t>(std::clamp(sum >> kWeightBits, 0, 255));
    }
  }
}

Image resized_in_width(const Image& image, std::size_t width) {
  const std::size_t channels = image.channels;
  Image made{image.height, width, channels, std::vector<std::uint8_t>(image.height * width * channels)};
  const auto start = [channels](std::size_t row_width) {
    return [channels, row_width](std::size_t line) { return line / channels * row_width * channels + line % channels; };
  };
  resample(image.pixels, made.pixels, bilinear_taps(image.width, width), channels, image.height * channels,
           start(image.width), start(width));
  return made;
}

Image resized_in_height(const Image& image, std::size_t height) {
  const std::size_t row = image.width * image.channels;
  Image made{height, image.width, image.channels, std::vector<std::uint8_t>(height * row)};
  const auto start = [](std::size_t line) { return line; };
  resample(image.pixels, made.pixels, bilinear_taps(image.height, height), row, row, start, start);
  return made;
}

}  // namespace

Image image_from_netpbm(std::string_view bytes) {
  if (bytes.size() < 2 || bytes[0] != 'P' || std::string_view("2356").find(bytes[1]) == std::string_view::npos) {
    refuse("not a netpbm image of grey or colour; convert it to PGM or PPM (P2, P3, P5 or P6)");
  }
  const bool plain = bytes[1] == '2' || bytes[1] == '3';
  NetpbmReader reader(bytes);
  reader.skip(2);
  constexpr std::uint32_t kLargestSide = 1 << 20;
  Image image;
  image.channels = bytes[1] == '2' || bytes[1] == '5' ? 1 : 3;
  image.width = reader.number("width", kLargestSide);
  image.height = reader.number("height", kLargestSide);
  const std::uint32_t maximum = reader.number("maximum (only 8 bits a channel are read)", 255);
  if (!image.width || !image.height || !maximum) refuse("the image's width, height or maximum is 0");
  const std::size_t count = image.width * image.height * image.channels;  // below 2^42
  // A plain value takes a digit, and a space before it.
  const std::size_t least = plain ? 2 * count : count + 1;
  if (reader.left() < least) {
    refuse("the image is cut off: " + std::to_string(image.width) + " x " + std::to_string(image.height) + " x " +
           std::to_string(image.channels) + " values take at least " + std::to_string(least) + " bytes, " +
           std::to_string(reader.left()) + " are there");
  }
  const std::vector<std::uint8_t> scaled = scaled_values(maximum);
  image.pixels.resize(count);
  if (plain) {
    for (std::uint8_t& pixel : image.pixels) pixel = scaled[reader.number("value", maximum)];
    return image;
  }
  const std::string_view raster = reader.raster();
  for (std::size_t i = 0; i < count; ++i) {
    image.pixels[i] = scaled[std::min<std::uint32_t>(static_cast<std::uint8_t>(raster[i]), maximum)];
  }
  return image;
}

Image with_channels(const Image& image, std::size_t channels) {
  if (image.channels == channels) return image;
  Image made{image.height, image.width, channels, {}};
  const std::size_t count = image.height * image.width;
  made.pixels.resize(count * channels);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* from = &image.pixels[i * image.channels];
    if (channels == 1) {
      made.pixels[i] = static_cast<std::uint8_t>((19595 * from[0] + 38470 * from[1] + 7471 * from[2] + 0x8000) >> 16);
    } else {
      std::fill_n(&made.pixels[i * channels], channels, *from);
    }
  }
  return made;
}

Image resized(const Image& image, std::size_t height, std::size_t width) {
  constexpr std::size_t kMostPixels = 1 << 28;
  if (!height || !width || std::max(image.height, height) > kMostPixels / width) {
    refuse("an image of " + std::to_string(image.width) + " x " + std::to_string(image.height) + " is not resized to " +
           std::to_string(width) + " x " + std::to_string(height) +
           ": too many pixels; cut it, or make it smaller first");
  }
  Image made = image.width == width ? image : resized_in_width(image, width);
  return made.height == height ? made : resized_in_height(made, height);
}

Image cropped(const Image& image, std::size_t top, std::size_t left, std::size_t height, std::size_t width) {
  if (top > image.height || height > image.height - top || left > image.width || width > image.width - left) {
    refuse("the part to cut out is not inside the image");
  }
  Image made{height, width, image.channels, {}};
  made.pixels.reserve(height * width * image.channels);
  for (std::size_t row = top; row < top + height; ++row) {
    const auto start = image.pixels.begin() + static_cast<std::ptrdiff_t>((row * image.width + left) * image.channels);
    made.pixels.insert(made.pixels.end(), start, start + static_cast<std::ptrdiff_t>(width * image.channels));
  }
  return made;
}

std::string read_file(const std::filesystem::path& path, std::uintmax_t max_bytes) {
  std::error_code failed;
  const std::uintmax_t size = std::filesystem::file_size(path, failed);
  if (failed) refuse(path.string() + " cannot be read: " + failed.message());
  if (size > max_bytes) {
    refuse(path.string() + " has " + std::to_string(size) + " bytes; at most " + std::to_string(max_bytes) +
           " are read");
  }
  std::ifstream file(path, std::ios::binary);
  std::string bytes(static_cast<std::size_t>(size), '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file || file.gcount() != static_cast<std::streamsize>(size)) refuse(path.string() + " cannot be read");
  return bytes;
}

}  // namespace examples
