// Engines by file: opened when first needed, let go when memory is short.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "rnp/controller.hpp"
#include "rnp/engine.hpp"

namespace rnp {

// Opens each engine once. Safe in many threads; while one is opened, others can be had.
class EngineCache {
 public:
  // `budget_bytes`: weights that the open engines may hold together, 0: no limit. The least recently used are let go
  // first; one that is running stays until it is done, and what is needed next is opened in any case.
  // `before_release` is called before engines are let go.
  EngineCache(const Plan& plan, Backend& backend, std::uint64_t budget_bytes,
              std::function<void()> before_release = {});

  // The number of a file of the plan.
  std::size_t file_of(const std::string& path) const { return files_.at(path); }
  const std::string& path_of(std::size_t file) const { return entries_[file].path; }
  bool evicts() const noexcept { return budget_bytes_ != 0; }

  // The engine of a file. Throws what Backend::open throws.
  std::shared_ptr<Engine> get(std::size_t file);

  // Opens engines in the order given, and stops before the first that would evict another.
  void open_within_budget(const std::vector<std::string>& paths);

  // Engines, their weights and the evictions so far.
  void report(MemoryReport& report) const;

 private:
  struct Entry {
    std::string path;
    std::uint64_t weight_bytes = 0;
    std::shared_ptr<Engine> engine{};
    bool opening = false;
    std::uint64_t used = 0;
  };

  std::uint64_t held_bytes() const;
  std::vector<std::shared_ptr<Engine>> make_room(std::uint64_t needed_bytes);
  std::shared_ptr<Engine> open(Entry& entry, std::unique_lock<std::mutex>& lock);

  Backend& backend_;
  const std::uint64_t budget_bytes_;
  const std::function<void()> before_release_;
  std::map<std::string, std::size_t> files_;
  mutable std::mutex mutex_;
  std::condition_variable opened_;
  std::vector<Entry> entries_;
  std::size_t opening_ = 0;
  std::uint64_t clock_ = 0, evictions_ = 0;
};

}  // namespace rnp
