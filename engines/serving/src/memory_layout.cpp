#include "memory_layout.hpp"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "rnp/error.hpp"

namespace rnp {
namespace {

constexpr std::size_t kAlignment = 64;  // a cache line, and the widest vector load

// Gives slots, one tensor after another.
class Slots {
 public:
  explicit Slots(MemoryLayout& layout) : layout_(layout) {}

  // Takes the free slot that has to grow least; of those that need not, the smallest.
  void place(std::size_t tensor, std::vector<std::size_t>& free) {
    const auto largest = static_cast<std::size_t>(layout_.tensors[tensor].largest_bytes());
    const std::size_t needed = (largest + kAlignment - 1) / kAlignment * kAlignment;
    std::vector<std::size_t>& bytes = layout_.slot_bytes;
    if (free.empty()) {
      layout_.slot_of[tensor] = bytes.size();
      bytes.push_back(needed);
      return;
    }
    const auto cost = [&](std::size_t slot) {
      return std::make_pair(needed > bytes[slot] ? needed - bytes[slot] : 0, bytes[slot]);
    };
    const auto best =
        std::min_element(free.begin(), free.end(), [&](std::size_t a, std::size_t b) { return cost(a) < cost(b); });
    layout_.slot_of[tensor] = *best;
    bytes[*best] = std::max(bytes[*best], needed);
    free.erase(best);
  }

  // Slots in which nothing lies that is read after step i.
  std::vector<std::size_t> free_after(std::ptrdiff_t i, const std::vector<std::ptrdiff_t>& last) const {
    std::vector<bool> live(layout_.slot_bytes.size(), false);
    for (std::size_t tensor = 0; tensor < last.size(); ++tensor) {
      if (layout_.slot_of[tensor] != MemoryLayout::kNoSlot && last[tensor] > i) live[layout_.slot_of[tensor]] = true;
    }
    std::vector<std::size_t> free;
    for (std::size_t slot = 0; slot < live.size(); ++slot) {
      if (!live[slot]) free.push_back(slot);
    }
    return free;
  }

 private:
  MemoryLayout& layout_;
};

}  // namespace

std::map<std::string, std::size_t> tensor_indices(const Plan& plan) {
  std::map<std::string, std::size_t> indices;
  for (std::size_t i = 0; i < plan.tensors.size(); ++i) indices[plan.tensors[i].name] = i;
  for (const Step& step : plan.steps) {
    for (const Names* names : {&step.inputs, &step.outputs}) {
      for (const auto& [inner, name] : *names) {
        if (indices.count(name) == 0) {
          throw Error(ErrorCode::kPlan,
                      "the plan's steps name '" + name + "', which is no tensor of it; build it again");
        }
      }
    }
  }
  return indices;
}

std::vector<std::ptrdiff_t> last_uses(const Plan& plan) {
  const auto indices = tensor_indices(plan);
  std::vector<std::ptrdiff_t> last(plan.tensors.size(), -1);
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    for (const auto& [inner, name] : plan.steps[i].inputs) last[indices.at(name)] = static_cast<std::ptrdiff_t>(i);
  }
  return last;
}

MemoryLayout::MemoryLayout(const Plan& plan, const std::string& kept)
    : tensors(plan.tensors), slot_of(plan.tensors.size(), kNoSlot) {
  const auto indices = tensor_indices(plan);
  const auto index_of = [&](const std::string& name) { return indices.at(name); };
  if (indices.count(kept) == 0) throw Error(ErrorCode::kPlan, "the plan has no tensor '" + kept + "'; build it again");
  const auto steps = static_cast<std::ptrdiff_t>(plan.steps.size());
  std::vector<std::ptrdiff_t> last = last_uses(plan);
  last[index_of(kept)] = steps;

  Slots slots(*this);
  std::vector<std::size_t> free;
  std::set<std::string> made, given;
  for (const Step& step : plan.steps) {
    for (const auto& [inner, name] : step.outputs) made.insert(name);
  }
  for (const Step& step : plan.steps) {
    for (const auto& [inner, name] : step.inputs) {
      if (made.count(name) == 0) given.insert(name);
    }
  }
  for (const std::string& name : given) slots.place(index_of(name), free);

  for (std::ptrdiff_t i = 0; i < steps; ++i) {
    const Step& step = plan.steps[static_cast<std::size_t>(i)];
    std::set<std::size_t> done_with;
    for (const auto& [inner, name] : step.inputs) {
      if (last[index_of(name)] == i) done_with.insert(index_of(name));
    }
    for (const auto& [inner, name] : step.outputs) {
      const auto source = step.in_place.find(name);
      if (source != step.in_place.end() && indices.count(source->second) != 0 &&
          done_with.erase(index_of(source->second)) != 0) {
        std::vector<std::size_t> same{slot_of[index_of(source->second)]};
        slots.place(index_of(name), same);
      } else {
        slots.place(index_of(name), free);
      }
    }
    // What is made and never read is needed until its step is done: the host may read it.
    free = slots.free_after(i, last);
  }
  for (const std::size_t bytes : slot_bytes) {
    if (bytes > std::numeric_limits<std::ptrdiff_t>::max() - sample_bytes) {
      throw Error(ErrorCode::kPlan, "the plan's tensors are more than can be addressed; build it again");
    }
    sample_bytes += bytes;
  }
}

}  // namespace rnp
