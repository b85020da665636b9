#include "classify_request.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "rnp/error.hpp"

namespace examples {
namespace {

using Json = nlohmann::json;

constexpr int kDeepest = 8;  // an image has 3 axes; the object around it is one more

[[noreturn]] void refuse(const std::string& message) { throw rnp::Error(rnp::ErrorCode::kInput, message); }

constexpr std::size_t kNoIndex = std::numeric_limits<std::size_t>::max();

// Refuses what a float32 cannot hold; to convert that is undefined. `index`: which value of `name`.
float finite_float(double value, const char* name, std::size_t index = kNoIndex) {
  if (std::abs(value) <= std::numeric_limits<float>::max()) return static_cast<float>(value);  // false of NaN
  refuse(name + (index == kNoIndex ? "" : ": value " + std::to_string(index)) + " is not a finite float32");
}

void check_finite(const std::vector<float>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) finite_float(values[i], "image", i);
}

Json object_from(const std::string& body) {
  try {
    Json parsed = Json::parse(body, [](int depth, Json::parse_event_t, Json&) {
      if (depth > kDeepest) refuse("the body is nested more than " + std::to_string(kDeepest) + " deep");
      return true;
    });
    if (!parsed.is_object()) refuse("the body is no JSON object; pass {\"image\": [...]}");
    return parsed;
  } catch (const Json::exception& err) {
    refuse(std::string("the body is no JSON: ") + err.what());
  }
}

std::optional<double> number_at(const Json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || found->is_null()) return std::nullopt;
  if (!found->is_number()) refuse(std::string(name) + " is no number");
  return found->get<double>();
}

// Appends what lies nested as shape[axis:] says; false where it does not.
bool append_values(const Json& nested, const std::vector<std::int64_t>& shape, std::size_t axis,
                   std::vector<float>& values) {
  if (axis == shape.size()) {
    if (nested.is_number()) values.push_back(finite_float(nested.get<double>(), "image", values.size()));
    return nested.is_number();
  }
  if (!nested.is_array() || nested.size() != static_cast<std::size_t>(shape[axis])) return false;
  for (const Json& part : nested) {
    if (!append_values(part, shape, axis + 1, values)) return false;
  }
  return true;
}

// Lengths of the arrays at the front of each depth, to say what was passed.
std::string nesting_text(const Json& image) {
  std::vector<std::int64_t> lengths;
  const Json* at = &image;
  while (at->is_array()) {
    lengths.push_back(static_cast<std::int64_t>(at->size()));
    if (at->empty()) break;
    at = &at->front();
  }
  return lengths.empty() ? image.type_name() : "an array " + shape_text(lengths);
}

}  // namespace

std::size_t input_values(const rnp::Manifest& manifest) {
  std::size_t count = 1;
  for (const std::int64_t size : manifest.input.shape) count *= static_cast<std::size_t>(size);
  return count;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

float penalty_from(std::optional<double> penalty, std::optional<double> target_macs, const rnp::Manifest& manifest) {
  if (penalty && target_macs) refuse("penalty and target_macs are both given; pass one of them");
  if (target_macs) {
    if (!manifest.calibration) refuse("target_macs needs a calibrated network; pass penalty");
    finite_float(*target_macs, "target_macs");
    return finite_float(manifest.calibration->penalty_for(*target_macs), "the penalty of target_macs");
  }
  return finite_float(penalty.value_or(manifest.agent.penalty), "penalty");
}

std::vector<float> image_from_tensor(const std::string& bytes, const rnp::Manifest& manifest) {
  static_assert(sizeof(float) == 4);
  const std::size_t count = input_values(manifest);
  if (bytes.size() != count * sizeof(float)) {
    refuse("expected " + std::to_string(count * sizeof(float)) + " bytes, float32 " + shape_text(manifest.input.shape) +
           "; got " + std::to_string(bytes.size()));
  }
  std::vector<float> image(count);
  std::memcpy(image.data(), bytes.data(), bytes.size());
  check_finite(image);
  return image;
}

ClassifyRequest request_from_tensor(const std::string& body, std::optional<double> penalty,
                                    std::optional<double> target_macs, const rnp::Manifest& manifest) {
  return {image_from_tensor(body, manifest), penalty_from(penalty, target_macs, manifest)};
}

ClassifyRequest request_from_json(const std::string& body, const rnp::Manifest& manifest) {
  const Json object = object_from(body);
  for (const auto& [name, value] : object.items()) {
    if (name != "image" && name != "penalty" && name != "target_macs") {
      refuse("\"" + name + "\" is no field; pass image, and penalty or target_macs");
    }
  }
  if (!object.contains("image")) refuse("image is missing; pass {\"image\": [...]}");
  const Json& image = object["image"];
  const std::vector<std::int64_t>& shape = manifest.input.shape;
  const std::vector<std::int64_t> flat{static_cast<std::int64_t>(input_values(manifest))};
  ClassifyRequest request;
  const bool nested = image.is_array() && !image.empty() && image.front().is_array();
  if (!append_values(image, nested ? shape : flat, 0, request.image)) {
    refuse("image: expected " + std::to_string(flat[0]) + " numbers, flat or nested as " + shape_text(shape) +
           "; got " + nesting_text(image) + " or values that are no numbers");
  }
  request.penalty = penalty_from(number_at(object, "penalty"), number_at(object, "target_macs"), manifest);
  return request;
}

}  // namespace examples
