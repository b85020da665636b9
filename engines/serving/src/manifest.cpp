#include "rnp/manifest.hpp"

#include <algorithm>
#include <cstdio>

#include "rnp/error.hpp"

namespace rnp {

namespace {

std::string rounded(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

// The axis whose size follows an option, in a shape without N. Throws Error(kInternal).
std::size_t followed_axis(const TensorSpec& tensor) {
  if (tensor.axis < 1 || static_cast<std::size_t>(tensor.axis) > tensor.shape.size() || tensor.sizes.empty()) {
    throw Error(ErrorCode::kInternal,
                "tensor '" + tensor.name + "' follows an option on an axis that it does not have");
  }
  return static_cast<std::size_t>(tensor.axis - 1);
}

}  // namespace

std::size_t byte_size(DType dtype) noexcept {
  switch (dtype) {
    case DType::kFloat16:
    case DType::kBfloat16:
      return 2;
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
  }
  return 4;
}

std::vector<std::int64_t> TensorSpec::shape_at(const std::int64_t* options) const {
  std::vector<std::int64_t> taken = shape;
  if (follows) {
    const std::int64_t option = options[*follows];
    if (option < 1 || static_cast<std::size_t>(option) > sizes.size()) {
      throw Error(ErrorCode::kInternal, "tensor '" + name + "' has no size for option " + std::to_string(option));
    }
    taken[followed_axis(*this)] = sizes[static_cast<std::size_t>(option - 1)];
  }
  return taken;
}

std::int64_t TensorSpec::largest_bytes() const {
  std::vector<std::int64_t> largest = shape;
  if (follows) largest[followed_axis(*this)] = *std::max_element(sizes.begin(), sizes.end());
  std::int64_t bytes = static_cast<std::int64_t>(byte_size(dtype));
  for (const std::int64_t size : largest) bytes *= size;
  return bytes;
}

bool TensorSpec::operator==(const TensorSpec& other) const {
  return name == other.name && shape == other.shape && dtype == other.dtype && follows == other.follows &&
         axis == other.axis && sizes == other.sizes;
}

double Calibration::penalty_for(double target_macs) const {
  if (!(target_macs > 0 && target_macs <= 1)) {
    throw Error(ErrorCode::kInput, "target_macs is " + rounded(target_macs) + "; pass a share above 0, at most 1");
  }
  // A point that costs more than one at a lower penalty is passed over; between the others the share is linear.
  const CalibrationPoint* before = nullptr;
  for (const CalibrationPoint& point : points) {
    if (before != nullptr && point.macs_share >= before->macs_share) continue;
    if (point.macs_share <= target_macs) {
      if (before == nullptr) return point.penalty;
      return before->penalty + (before->macs_share - target_macs) / (before->macs_share - point.macs_share) *
                                   (point.penalty - before->penalty);
    }
    before = &point;
  }
  const std::string least = before == nullptr
                                ? ""
                                : ": the cheapest calibrated point takes " + rounded(before->macs_share) +
                                      " of the full network's MACs, at penalty " + rounded(before->penalty);
  throw Error(ErrorCode::kInput, "target_macs is " + rounded(target_macs) + least);
}

std::string state_name(std::size_t decision) { return "agent/state." + std::to_string(decision); }

std::string option_name(std::size_t decision) { return "agent/option." + std::to_string(decision); }

}  // namespace rnp
