// Memory of tensors: owned, lent again, and copied by rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "rnp/engine.hpp"

namespace rnp {

// The product. Throws Error(kInput) where it does not fit.
std::size_t bytes_of(std::size_t count, std::size_t bytes_each);

// Owns a piece of a Memory, which must outlive it.
class Buffer {
 public:
  Buffer() noexcept = default;
  Buffer(Memory& memory, std::size_t bytes);
  ~Buffer() { reset(); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const noexcept { return data_; }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  void swap(Buffer& other) noexcept;
  void reset() noexcept;

  Memory* memory_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Buffers that are used again. Safe in many threads.
class BufferPool {
 public:
  explicit BufferPool(Memory& memory) : memory_(memory) {}

  // At least so many bytes, not cleared.
  Buffer take(std::size_t bytes);
  // Back to the pool; never released here, since a device may still work on it.
  void give(Buffer buffer) noexcept;
  // Releases the largest while more is idle than may be; nothing may be under way on a device.
  void trim() noexcept;
  // Releases all that is idle, under the same condition; whether there was any.
  bool drop_idle() noexcept;
  // Of all its buffers, lent and idle.
  std::size_t held_bytes() const;

 private:
  std::vector<Buffer>::iterator place_of(std::size_t bytes) noexcept;

  Memory& memory_;
  mutable std::mutex mutex_;
  std::size_t held_bytes_ = 0;
  std::vector<Buffer> idle_;  // smallest first
};

// A buffer of a pool, given back at the end.
class PooledBuffer {
 public:
  PooledBuffer() noexcept = default;
  PooledBuffer(BufferPool& pool, std::size_t bytes) : pool_(&pool), buffer_(pool.take(bytes)) {}
  ~PooledBuffer() {
    if (pool_ != nullptr) pool_->give(static_cast<Buffer&&>(buffer_));
  }
  PooledBuffer(PooledBuffer&& other) noexcept : pool_(other.pool_), buffer_(static_cast<Buffer&&>(other.buffer_)) {
    other.pool_ = nullptr;
  }
  PooledBuffer& operator=(PooledBuffer&&) = delete;
  PooledBuffer(const PooledBuffer&) = delete;
  PooledBuffer& operator=(const PooledBuffer&) = delete;

  void* data() const noexcept { return buffer_.data(); }

 private:
  BufferPool* pool_ = nullptr;
  Buffer buffer_;
};

// Indices of samples.
using Rows = std::vector<std::size_t>;

// Where row `index` of `data` begins.
inline void* row_of(void* data, std::size_t index, std::size_t row_bytes) noexcept {
  return static_cast<unsigned char*>(data) + index * row_bytes;
}
inline const void* row_of(const void* data, std::size_t index, std::size_t row_bytes) noexcept {
  return static_cast<const unsigned char*>(data) + index * row_bytes;
}

// Calls copy(to's first row, from's first row, how many) for each run of rows that are neighbours on both sides.
// Null for `to` or `from`: 0, 1, 2, …
template <typename Copy>
void for_each_run(const std::size_t* to, const std::size_t* from, std::size_t count, Copy copy) {
  const auto at = [](const std::size_t* rows, std::size_t i) { return rows == nullptr ? i : rows[i]; };
  for (std::size_t begin = 0, end = 0; begin < count; begin = end) {
    for (end = begin + 1; end < count; ++end) {
      if (at(to, end) != at(to, begin) + (end - begin) || at(from, end) != at(from, begin) + (end - begin)) break;
    }
    copy(at(to, begin), at(from, begin), end - begin);
  }
}

// to[to_rows[i]] = from[from_rows[i]], both of this memory; null rows are 0, 1, 2, …
void copy_rows(Memory& memory, void* to, const std::size_t* to_rows, const void* from, const std::size_t* from_rows,
               std::size_t count, std::size_t row_bytes);

}  // namespace rnp
