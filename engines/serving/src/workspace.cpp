#include "workspace.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "rnp/error.hpp"

namespace rnp {
namespace {

// Memory that idle workspaces may hold beside the last one used; the largest go first. On a device
// memory is dear to make.
constexpr std::size_t kIdleBytes = std::size_t{512} << 20;
constexpr std::size_t kIdleDeviceBytes = std::size_t{4} << 30;

std::size_t piece_count(const Plan& plan) {
  std::size_t pieces = 0;
  for (const Step& step : plan.steps) pieces += step.pieces.size();
  return pieces;
}

}  // namespace

Workspace::Workspace(const MemoryLayout& layout, std::size_t pieces, std::size_t batch, Memory& memory)
    : layout_(layout), batch_(batch), bytes_(bytes_of(batch, layout.sample_bytes)), calls_(pieces) {
  slots_.reserve(layout.slot_bytes.size());
  for (const std::size_t bytes : layout.slot_bytes) slots_.emplace_back(memory, batch * bytes);
  if (!memory.on_host()) host_column_.resize(batch * sizeof(std::int64_t));
}

Workspaces::Workspaces(const Plan& plan, const std::string& kept, Memory& memory, std::function<bool()> free_more)
    : layout_(plan, kept), pieces_(piece_count(plan)), memory_(memory), free_more_(std::move(free_more)) {}

Workspaces::Lease Workspaces::lend(std::size_t batch) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found =
        std::find_if(idle_.rbegin(), idle_.rend(), [&](const Workspace& idle) { return idle.batch() == batch; });
    if (found != idle_.rend()) {
      const auto taken = std::prev(found.base());
      lent_.splice(lent_.end(), idle_, taken);
      return {*this, taken};
    }
  }
  std::list<Workspace> taken = made(batch);
  const std::lock_guard<std::mutex> lock(mutex_);
  lent_.splice(lent_.end(), taken);
  return {*this, std::prev(lent_.end())};
}

std::list<Workspace> Workspaces::made(std::size_t batch) {
  std::list<Workspace> made;
  try {
    made.emplace_back(layout_, pieces_, batch, memory_);
    return made;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kMemory && error.code() != ErrorCode::kDevice) throw;
    bool freed = free_more_ && free_more_();
    std::list<Workspace> dropped;  // released outside the lock
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      dropped.swap(idle_);
    }
    freed = freed || !dropped.empty();
    if (!freed) throw;
  }
  made.emplace_back(layout_, pieces_, batch, memory_);
  return made;
}

void Workspaces::take_back(std::list<Workspace>::iterator lent) noexcept {
  std::list<Workspace> dropped;  // released outside the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.splice(idle_.end(), lent_, lent);
  const std::size_t limit = memory_.on_host() ? kIdleBytes : kIdleDeviceBytes;
  std::size_t held = 0;
  for (const Workspace& idle : idle_) held += idle.bytes();
  held -= idle_.back().bytes();
  while (held > limit) {
    const auto largest = std::max_element(idle_.begin(), std::prev(idle_.end()),
                                          [](const Workspace& a, const Workspace& b) { return a.bytes() < b.bytes(); });
    held -= largest->bytes();
    dropped.splice(dropped.end(), idle_, largest);
  }
}

std::size_t Workspaces::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::size_t held = 0;
  for (const std::list<Workspace>* workspaces : {&idle_, &lent_}) {
    for (const Workspace& workspace : *workspaces) held += workspace.bytes();
  }
  return held;
}

}  // namespace rnp
