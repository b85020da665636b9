#include "memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "backends.hpp"
#include "rnp/error.hpp"

namespace rnp {
namespace {

constexpr std::size_t kAlignment = 64;  // a cache line, and the widest vector load
constexpr std::size_t kIdlePoolBytes = std::size_t{256} << 20;

class HostMemory final : public Memory {
 public:
  explicit HostMemory(const Allocator& allocator) : allocator_(allocator) {
    if ((allocator.allocate == nullptr) != (allocator.release == nullptr)) {
      throw Error(ErrorCode::kInput, "an allocator has only one of allocate and release; pass both, or neither");
    }
  }

  bool on_host() const noexcept override { return true; }

  void* allocate(std::size_t bytes) override {
    if (bytes > std::numeric_limits<std::ptrdiff_t>::max() - kAlignment) throw short_of(bytes);
    const std::size_t whole = std::max(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (allocator_.allocate == nullptr) {
      void* const data = std::aligned_alloc(kAlignment, whole);
      if (data == nullptr) throw short_of(bytes);
      return data;
    }
    void* const data = allocator_.allocate(allocator_.context, whole);
    if (data == nullptr) throw short_of(bytes);
    if (reinterpret_cast<std::uintptr_t>(data) % kAlignment != 0) {
      allocator_.release(allocator_.context, data);
      throw Error(ErrorCode::kInput, "the allocator gave memory that is not aligned to 64 bytes; align it");
    }
    return data;
  }

  void release(void* data) noexcept override {
    if (data == nullptr) return;
    if (allocator_.release == nullptr) {
      std::free(data);
    } else {
      allocator_.release(allocator_.context, data);
    }
  }

  void copy_in(void* to, const void* from, std::size_t bytes) override { copy(to, from, bytes); }
  void copy_out(void* to, const void* from, std::size_t bytes) override { copy(to, from, bytes); }
  void copy_within(void* to, const void* from, std::size_t bytes) override { copy(to, from, bytes); }
  void zero(void* to, std::size_t bytes) override {
    if (bytes != 0) std::memset(to, 0, bytes);
  }
  void synchronise() override {}

 private:
  static Error short_of(std::size_t bytes) {
    return Error(ErrorCode::kMemory, "no memory for a tensor of " + std::to_string(bytes) +
                                         " bytes; pass smaller batches, or run fewer at once");
  }
  static void copy(void* to, const void* from, std::size_t bytes) {
    if (bytes != 0) std::memcpy(to, from, bytes);
  }

  const Allocator allocator_;
};

}  // namespace

std::shared_ptr<Memory> host_memory(const Allocator& allocator) { return std::make_shared<HostMemory>(allocator); }

std::size_t Tensor::bytes() const noexcept {
  std::size_t bytes = byte_size(dtype);
  for (const std::int64_t size : shape) bytes *= static_cast<std::size_t>(size);
  return bytes;
}

std::size_t bytes_of(std::size_t count, std::size_t bytes_each) {
  if (bytes_each != 0 && count > std::numeric_limits<std::ptrdiff_t>::max() / bytes_each) {
    throw Error(ErrorCode::kInput, "a batch of " + std::to_string(count) + " at " + std::to_string(bytes_each) +
                                       " bytes each is more than can be addressed; pass a smaller one");
  }
  return count * bytes_each;
}

Buffer::Buffer(Memory& memory, std::size_t bytes) : memory_(&memory), data_(memory.allocate(bytes)), bytes_(bytes) {}

void Buffer::swap(Buffer& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
}

void Buffer::reset() noexcept {
  if (data_ != nullptr) memory_->release(data_);
  data_ = nullptr;
  bytes_ = 0;
}

Buffer BufferPool::take(std::size_t bytes) {
  bytes = std::max(bytes, kAlignment);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = place_of(bytes);
    // A much larger one is kept for what needs it.
    if (found != idle_.end() && found->bytes() / 2 <= bytes) {
      Buffer taken = std::move(*found);
      idle_.erase(found);
      return taken;
    }
  }
  Buffer made(memory_, bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  held_bytes_ += bytes;
  return made;
}

void BufferPool::give(Buffer buffer) noexcept {
  if (buffer.data() == nullptr) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  try {
    idle_.insert(place_of(buffer.bytes()), std::move(buffer));
  } catch (const std::bad_alloc&) {
    held_bytes_ -= buffer.bytes();  // no memory to remember it in: it is released
  }
}

void BufferPool::trim() noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::size_t idle = 0;
  for (const Buffer& buffer : idle_) idle += buffer.bytes();
  while (idle > kIdlePoolBytes) {
    idle -= idle_.back().bytes();
    held_bytes_ -= idle_.back().bytes();
    idle_.pop_back();
  }
}

bool BufferPool::drop_idle() noexcept {
  std::vector<Buffer> dropped;  // released outside the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  dropped.swap(idle_);
  for (const Buffer& buffer : dropped) held_bytes_ -= buffer.bytes();
  return !dropped.empty();
}

std::size_t BufferPool::held_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return held_bytes_;
}

std::vector<Buffer>::iterator BufferPool::place_of(std::size_t bytes) noexcept {
  return std::lower_bound(idle_.begin(), idle_.end(), bytes,
                          [](const Buffer& buffer, std::size_t wanted) { return buffer.bytes() < wanted; });
}

void copy_rows(Memory& memory, void* to, const std::size_t* to_rows, const void* from, const std::size_t* from_rows,
               std::size_t count, std::size_t row_bytes) {
  for_each_run(to_rows, from_rows, count, [&](std::size_t to_row, std::size_t from_row, std::size_t rows) {
    memory.copy_within(row_of(to, to_row, row_bytes), row_of(from, from_row, row_bytes), rows * row_bytes);
  });
}

}  // namespace rnp
