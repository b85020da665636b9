// Which tensors of a plan share memory: those that are never needed at the same time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "rnp/manifest.hpp"

namespace rnp {

// By tensor of the plan, in its order: the last step that reads it; where none does, -1.
std::vector<std::ptrdiff_t> last_uses(const Plan& plan);

// Tensor's name → its place among the plan's tensors. Throws Error(kPlan) where a step names another.
std::map<std::string, std::size_t> tensor_indices(const Plan& plan);

struct MemoryLayout {
  // `kept`: a tensor that is read after the last step. Throws Error(kPlan): a step names what is no tensor, or the
  // slots are more than can be addressed.
  MemoryLayout(const Plan& plan, const std::string& kept);

  std::vector<TensorSpec> tensors;      // the plan's
  std::vector<std::size_t> slot_of;     // by tensor; kNoSlot where no step reads or makes it
  std::vector<std::size_t> slot_bytes;  // of one sample; a batch of N takes N times that
  std::size_t sample_bytes = 0;         // of all slots

  static constexpr std::size_t kNoSlot = static_cast<std::size_t>(-1);
};

}  // namespace rnp
