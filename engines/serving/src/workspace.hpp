// Memory for the tensors of one run, and the calls that are bound to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "memory.hpp"
#include "memory_layout.hpp"
#include "rnp/engine.hpp"

namespace rnp {

// The buffers of one batch size; one run uses it at a time.
class Workspace {
 public:
  struct Call {
    std::unique_ptr<BoundCall> bound{};  // null until it is
    std::int64_t macs = 0;               // of a sample
  };

  // `pieces`: of all steps together.
  Workspace(const MemoryLayout& layout, std::size_t pieces, std::size_t batch, Memory& memory);

  std::size_t batch() const noexcept { return batch_; }
  std::size_t bytes() const noexcept { return bytes_; }
  // Where a tensor lies, or null where no step reads or makes it.
  void* data(std::size_t tensor) const noexcept {
    const std::size_t slot = layout_.slot_of[tensor];
    return slot == MemoryLayout::kNoSlot ? nullptr : slots_[slot].data();
  }
  // Of a piece, counted through all steps.
  Call& call(std::size_t piece) noexcept { return calls_[piece]; }
  // Where a device's options [N], of at most 8 bytes each, are copied to.
  void* host_column() noexcept { return host_column_.data(); }

 private:
  const MemoryLayout& layout_;
  std::size_t batch_, bytes_;
  std::vector<Buffer> slots_;
  std::vector<std::byte> host_column_;
  std::vector<Call> calls_;  // go before the memory they are bound to
};

// Idle workspaces, to be used again by runs of the same batch size. Safe in many threads.
class Workspaces {
 public:
  // `free_more` is called where memory is short, before idle workspaces are let go: it waits for the device, and frees
  // what else is idle; whether there was any.
  Workspaces(const Plan& plan, const std::string& kept, Memory& memory, std::function<bool()> free_more = {});

  // A workspace that nobody else has until this ends.
  class Lease {
   public:
    Lease(Workspaces& owner, std::list<Workspace>::iterator lent) noexcept : owner_(&owner), lent_(lent) {}
    ~Lease() {
      if (owner_ != nullptr) owner_->take_back(lent_);
    }
    Lease(Lease&& other) noexcept : owner_(other.owner_), lent_(other.lent_) { other.owner_ = nullptr; }
    Lease& operator=(Lease&&) = delete;
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    Workspace& operator*() const noexcept { return *lent_; }
    Workspace* operator->() const noexcept { return &*lent_; }

   private:
    Workspaces* owner_;
    std::list<Workspace>::iterator lent_;
  };

  // For a batch of N; where memory is short, once more without what is idle. Throws Error(kMemory), Error(kDevice),
  // Error(kInput): N is more than can be addressed.
  Lease lend(std::size_t batch);

  const MemoryLayout& layout() const noexcept { return layout_; }
  Memory& memory() const noexcept { return memory_; }
  // Of all workspaces, lent and idle.
  std::size_t bytes() const;

 private:
  std::list<Workspace> made(std::size_t batch);
  void take_back(std::list<Workspace>::iterator lent) noexcept;

  const MemoryLayout layout_;
  const std::size_t pieces_;
  Memory& memory_;
  const std::function<bool()> free_more_;
  mutable std::mutex mutex_;
  std::list<Workspace> idle_, lent_;  // idle: least recently used first
};

}  // namespace rnp
