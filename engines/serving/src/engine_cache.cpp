#include "engine_cache.hpp"

#include <utility>

#include "rnp/error.hpp"

namespace rnp {

EngineCache::EngineCache(const Plan& plan, Backend& backend, std::uint64_t budget_bytes,
                         std::function<void()> before_release)
    : backend_(backend), budget_bytes_(budget_bytes), before_release_(std::move(before_release)) {
  for (const Step& step : plan.steps) {
    for (const Piece& piece : step.pieces) {
      const std::size_t file = files_.emplace(piece.file, entries_.size()).first->second;
      if (file == entries_.size()) entries_.emplace_back();
      entries_[file].path = piece.file;
      entries_[file].weight_bytes = static_cast<std::uint64_t>(piece.weight_bytes);
    }
  }
}

std::shared_ptr<Engine> EngineCache::get(std::size_t file) {
  std::unique_lock<std::mutex> lock(mutex_);
  Entry& entry = entries_[file];
  // Under a budget one is opened after another, so that each makes room for itself.
  opened_.wait(lock, [&] { return entry.engine != nullptr || (evicts() ? opening_ == 0 : !entry.opening); });
  entry.used = ++clock_;
  return entry.engine != nullptr ? entry.engine : open(entry, lock);
}

std::shared_ptr<Engine> EngineCache::open(Entry& entry, std::unique_lock<std::mutex>& lock) {
  auto let_go = make_room(entry.weight_bytes);
  entry.opening = true;
  ++opening_;
  lock.unlock();
  std::shared_ptr<Engine> engine;
  const auto done = [&] {
    lock.lock();
    entry.opening = false;
    --opening_;
    opened_.notify_all();
  };
  try {
    if (!let_go.empty() && before_release_) before_release_();
    let_go.clear();  // before another is opened: their memory is wanted for it
    engine = backend_.open(entry.path);
    if (engine == nullptr) throw Error(ErrorCode::kInternal, "the backend gave no engine for " + entry.path);
  } catch (...) {
    done();
    throw;
  }
  done();
  entry.engine = engine;
  entry.used = ++clock_;
  return engine;
}

std::uint64_t EngineCache::held_bytes() const {
  std::uint64_t held = 0;
  for (const Entry& entry : entries_) {
    if (entry.engine != nullptr || entry.opening) held += entry.weight_bytes;
  }
  return held;
}

std::vector<std::shared_ptr<Engine>> EngineCache::make_room(std::uint64_t needed_bytes) {
  std::vector<std::shared_ptr<Engine>> let_go;
  if (budget_bytes_ == 0) return let_go;
  std::uint64_t held = held_bytes();
  while (held + needed_bytes > budget_bytes_) {
    Entry* oldest = nullptr;
    for (Entry& entry : entries_) {
      const bool removable = entry.engine != nullptr && entry.weight_bytes != 0;
      if (removable && (oldest == nullptr || entry.used < oldest->used)) oldest = &entry;
    }
    if (oldest == nullptr) break;
    // Another thread may be about to run it: the last to let go frees it.
    let_go.push_back(std::move(oldest->engine));
    oldest->engine = nullptr;
    held -= oldest->weight_bytes;
    ++evictions_;
  }
  return let_go;
}

void EngineCache::open_within_budget(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    const std::size_t file = file_of(path);
    if (budget_bytes_ != 0) {
      const std::lock_guard<std::mutex> lock(mutex_);
      const Entry& entry = entries_[file];
      const std::uint64_t more = entry.engine != nullptr || entry.opening ? 0 : entry.weight_bytes;
      if (held_bytes() + more > budget_bytes_) return;
    }
    get(file);
  }
}

void EngineCache::report(MemoryReport& report) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  report.engines_in_all = entries_.size();
  report.engines = 0;
  report.weight_bytes = 0;
  for (const Entry& entry : entries_) {
    if (entry.engine == nullptr) continue;
    ++report.engines;
    report.weight_bytes += entry.weight_bytes;
  }
  report.evictions = evictions_;
}

}  // namespace rnp
