// Products and orders of numbers that a file has chosen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace rnp {

// Of factors of at least 1; 2^63-1 where it would be more.
inline std::int64_t saturated_product(const std::vector<std::int64_t>& factors) noexcept {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  std::int64_t product = 1;
  for (const std::int64_t factor : factors) {
    if (product > kMost / factor) return kMost;
    product *= factor;
  }
  return product;
}

// Whether each value is larger than the one before.
inline bool rises(const std::vector<std::int64_t>& values) noexcept {
  for (std::size_t i = 1; i < values.size(); ++i) {
    if (values[i - 1] >= values[i]) return false;
  }
  return true;
}

}  // namespace rnp
