// A device as careless code would not survive it: its addresses are none of the
// host's, and work is only done once it is waited for. What is done wrongly is
// kept in `wrongs`.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "rnp/engine.hpp"
#include "rnp/error.hpp"

namespace rnp::testing {

class FakeDevice final : public Memory {
 public:
  bool on_host() const noexcept override { return false; }

  void* allocate(std::size_t bytes) override {
    const Alone alone(*this);
    if (fail_allocation_at != 0 && ++allocations == fail_allocation_at) {
      throw Error(ErrorCode::kDevice, "the device's memory is exhausted");
    }
    const std::uintptr_t address = next_;
    next_ += (bytes + 511) / 256 * 256;
    blocks_[address].assign(bytes, 0xcd);
    return reinterpret_cast<void*>(address);
  }

  void release(void* data) noexcept override {
    const Alone alone(*this);
    if (blocks_.erase(reinterpret_cast<std::uintptr_t>(data)) == 0) wrong("released what is not allocated");
  }

  void copy_in(void* to, const void* from_host, std::size_t bytes) override {
    const Alone alone(*this);
    check_host(from_host);
    const auto* const first = static_cast<const unsigned char*>(from_host);
    queue_.push_back([this, to, kept = std::vector<unsigned char>(first, first + bytes)] {
      if (unsigned char* const here = at(to, kept.size())) std::memcpy(here, kept.data(), kept.size());
    });
  }

  void copy_out(void* to_host, const void* from, std::size_t bytes) override {
    const Alone alone(*this);
    check_host(to_host);
    finish();
    if (const unsigned char* const here = at(from, bytes)) std::memcpy(to_host, here, bytes);
    ++copies_out;
  }

  void copy_within(void* to, const void* from, std::size_t bytes) override {
    const Alone alone(*this);
    queue_.push_back([this, to, from, bytes] {
      unsigned char* const target = at(to, bytes);
      const unsigned char* const source = at(from, bytes);
      if (target != nullptr && source != nullptr) std::memmove(target, source, bytes);
    });
    ++copies_within;
  }

  void zero(void* to, std::size_t bytes) override {
    const Alone alone(*this);
    queue_.push_back([this, to, bytes] {
      if (unsigned char* const here = at(to, bytes)) std::memset(here, 0, bytes);
    });
  }

  void synchronise() override {
    const Alone alone(*this);
    finish();
  }

  // Puts work into the stream.
  void enqueue(std::function<void()> work) {
    const Alone alone(*this);
    queue_.push_back(std::move(work));
  }

  // The host's memory behind an address; null, and taken down as wrong, where
  // there is none.
  unsigned char* at(const void* data, std::size_t bytes) {
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    auto block = blocks_.upper_bound(address);
    if (block != blocks_.begin()) {
      --block;
      const std::size_t offset = address - block->first;
      if (offset <= block->second.size() && bytes <= block->second.size() - offset)
        return block->second.data() + offset;
    }
    wrong("an address that is not allocated was read or written");
    return nullptr;
  }

  void wrong(const std::string& what) {
    const std::lock_guard<std::mutex> lock(mutex_);
    wrongs.push_back(what);
  }
  std::size_t blocks() const { return blocks_.size(); }

  std::vector<std::string> wrongs;
  std::size_t copies_out = 0, copies_within = 0;
  std::size_t allocations = 0, fail_allocation_at = 0;

 private:
  // Two threads at once are wrong: a device runs one batch at a time.
  class Alone {
   public:
    explicit Alone(FakeDevice& device) : device_(device) {
      if (device_.inside_.fetch_add(1) != 0) device_.wrong("used by two threads at once");
    }
    ~Alone() { device_.inside_.fetch_sub(1); }

   private:
    FakeDevice& device_;
  };

  void finish() {
    const std::vector<std::function<void()>> work = std::move(queue_);
    queue_.clear();
    for (const auto& each : work) each();
  }

  void check_host(const void* data) {
    if (reinterpret_cast<std::uintptr_t>(data) >= kFirst) wrong("a device's address was taken for one of the host");
  }

  static constexpr std::uintptr_t kFirst = std::uintptr_t{1} << 52;  // no address that a process can have
  std::uintptr_t next_ = kFirst;
  std::map<std::uintptr_t, std::vector<unsigned char>> blocks_;
  std::vector<std::function<void()>> queue_;
  std::atomic<int> inside_{0};
  std::mutex mutex_;
};

}  // namespace rnp::testing
