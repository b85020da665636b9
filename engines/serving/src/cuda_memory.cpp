#include "cuda_memory.hpp"

#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "rnp/error.hpp"

namespace rnp {
namespace {

constexpr unsigned kNonBlocking = 1;           // CU_STREAM_NON_BLOCKING: does not wait for the legacy stream
constexpr std::size_t kSmallestClass = 9;      // 512 bytes
constexpr std::size_t kLargestClass = 46;      // 64 TiB
constexpr std::size_t kStagingBytes = 262144;  // in all
constexpr std::size_t kStagedBytes = 65536;    // of one copy at most; larger ones are waited for
constexpr std::size_t kAlignment = 256;        // TensorRT wants as much of every tensor

CuPointer address(const void* data) noexcept { return reinterpret_cast<CuPointer>(data); }

// Blocks are of powers of two, so that those that are free fit tensors of other batches.
std::size_t size_class_of(std::size_t bytes) {
  std::size_t size_class = kSmallestClass;
  while (size_class <= kLargestClass && (std::size_t{1} << size_class) < bytes) {
    ++size_class;
  }
  if (size_class > kLargestClass) {
    throw Error(ErrorCode::kDevice, "no GPU has the " + std::to_string(bytes) + " bytes that a tensor would take");
  }
  return size_class;
}

}  // namespace

CudaMemory::CudaMemory(std::shared_ptr<const CudaDriver> driver, CuStream stream, const Allocator& allocator)
    : context_(std::move(driver)), allocator_(allocator) {
  if ((allocator_.allocate == nullptr) != (allocator_.release == nullptr)) {
    throw Error(ErrorCode::kInput, "an allocator has both allocate and release, or neither");
  }
  const CudaDriver& cuda = context_.driver();
  const CurrentContext current(context_);
  void* pinned = nullptr;
  cuda.call(cuda.host_allocate, &pinned, kStagingBytes, 0U);
  staging_ = static_cast<std::byte*>(pinned);
  try {
    use_stream(stream);
  } catch (...) {
    cuda.host_free.pointer(pinned);
    throw;
  }
}

void CudaMemory::use_stream(CuStream callers) {
  const CudaDriver& cuda = context_.driver();
  if (callers == nullptr) {
    cuda.call(cuda.stream_create, &stream_, kNonBlocking);
    owns_stream_ = true;
    return;
  }
  if (reinterpret_cast<std::uintptr_t>(callers) == 2) {  // cudaStreamPerThread
    throw Error(ErrorCode::kInput,
                "cudaStreamPerThread is another stream in every thread, and all work has to be in the order of one; "
                "make a stream with cudaStreamCreate");
  }
  CuContext of_stream = nullptr;
  cuda.call(cuda.stream_get_context, callers, &of_stream);
  if (of_stream != context_.handle()) {
    throw Error(ErrorCode::kDevice,
                "the stream is not of the first visible GPU's primary context, in which engines are run; make it on "
                "device 0, and choose the GPU by CUDA_VISIBLE_DEVICES");
  }
  stream_ = callers;
}

CudaMemory::~CudaMemory() {
  const CudaDriver& cuda = context_.driver();
  std::optional<CurrentContext> current;
  try {
    current.emplace(context_);
  } catch (const Error&) {  // the device is lost, and all below fails but for the caller's allocator
  }
  cuda.stream_synchronise.pointer(stream_);
  for (const auto& [block, described] : blocks_) {
    return_to_source(block);
  }
  cuda.host_free.pointer(staging_);
  if (owns_stream_) {
    cuda.stream_destroy.pointer(stream_);
  }
}

void* CudaMemory::allocate(std::size_t bytes) {
  const std::size_t size_class = size_class_of(bytes);
  const std::lock_guard lock(blocks_mutex_);
  if (void* kept = first_free_[size_class]; kept != nullptr) {
    first_free_[size_class] = std::exchange(blocks_.at(kept).next_free, nullptr);
    return kept;
  }
  void* block = new_block(std::size_t{1} << size_class);
  try {
    blocks_[block].size_class = size_class;
  } catch (...) {
    return_to_source(block);
    throw;
  }
  return block;
}

void* CudaMemory::new_block(std::size_t bytes) {
  const CurrentContext current(context_);
  if (void* block = block_from_source(bytes); block != nullptr) {
    return block;
  }
  give_back_locked();
  if (void* block = block_from_source(bytes); block != nullptr) {
    return block;
  }
  context_.driver().check(allocator_.allocate == nullptr ? "cuMemAlloc_v2" : "the caller's allocator", kCuOutOfMemory);
  return nullptr;  // not reached: check throws
}

// Null where memory is short.
void* CudaMemory::block_from_source(std::size_t bytes) {
  if (allocator_.allocate != nullptr) {
    void* block = allocator_.allocate(allocator_.context, bytes);
    if (address(block) % kAlignment != 0) {
      allocator_.release(allocator_.context, block);
      throw Error(ErrorCode::kInput, "the caller's allocator gave memory that is not aligned to 256 bytes; align it");
    }
    return block;
  }
  const CudaDriver& cuda = context_.driver();
  CuPointer pointer = 0;
  const int code = cuda.memory_allocate.pointer(&pointer, bytes);
  if (code == kCuOutOfMemory) {
    return nullptr;
  }
  cuda.check(cuda.memory_allocate.name, code);
  return reinterpret_cast<void*>(pointer);
}

void CudaMemory::return_to_source(void* block) noexcept {
  if (allocator_.release != nullptr) {
    allocator_.release(allocator_.context, block);
  } else {
    context_.driver().memory_free.pointer(address(block));
  }
}

void CudaMemory::release(void* data) noexcept {
  const std::lock_guard lock(blocks_mutex_);
  const auto found = blocks_.find(data);
  if (found == blocks_.end()) {
    return;
  }
  void*& first = first_free_[found->second.size_class];
  found->second.next_free = std::exchange(first, data);
}

void CudaMemory::give_back() {
  const std::lock_guard lock(blocks_mutex_);
  const CurrentContext current(context_);
  give_back_locked();
}

void CudaMemory::give_back_locked() {
  const CudaDriver& cuda = context_.driver();
  cuda.call(cuda.stream_synchronise, stream_);  // what is in the stream may still use them
  for (void*& first : first_free_) {
    while (first != nullptr) {
      const auto block = blocks_.find(first);
      first = block->second.next_free;
      return_to_source(block->first);
      blocks_.erase(block);
    }
  }
}

// The driver may read the caller's memory after the call where that is pinned; so small copies, which come between
// decisions, go by way of pinned memory here, and large ones, which begin a run, are waited for.
void CudaMemory::copy_in(void* to, const void* from_host, std::size_t bytes) {
  if (bytes == 0) {
    return;
  }
  const CudaDriver& cuda = context_.driver();
  const CurrentContext current(context_);
  if (bytes <= kStagedBytes) {
    copy_in_staged(address(to), from_host, bytes);
    return;
  }
  cuda.call(cuda.copy_to_device, address(to), from_host, bytes, stream_);
  synchronise_stream();
}

void CudaMemory::copy_in_staged(CuPointer to, const void* from_host, std::size_t bytes) {
  const CudaDriver& cuda = context_.driver();
  const std::lock_guard lock(staging_mutex_);
  if (staged_bytes_ + bytes > kStagingBytes) {
    cuda.call(cuda.stream_synchronise, stream_);
    staged_bytes_ = 0;
  }
  std::byte* staged = staging_ + staged_bytes_;
  std::memcpy(staged, from_host, bytes);
  staged_bytes_ += bytes;
  ++stagings_;
  cuda.call(cuda.copy_to_device, to, static_cast<const void*>(staged), bytes, stream_);
}

void CudaMemory::copy_out(void* to_host, const void* from, std::size_t bytes) {
  const CudaDriver& cuda = context_.driver();
  const CurrentContext current(context_);
  if (bytes > 0) {
    cuda.call(cuda.copy_to_host, to_host, address(from), bytes, stream_);
  }
  synchronise_stream();
}

void CudaMemory::copy_within(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) {
    return;
  }
  const CudaDriver& cuda = context_.driver();
  const CurrentContext current(context_);
  cuda.call(cuda.copy_on_device, address(to), address(from), bytes, stream_);
}

void CudaMemory::zero(void* to, std::size_t bytes) {
  if (bytes == 0) {
    return;
  }
  const CudaDriver& cuda = context_.driver();
  const CurrentContext current(context_);
  cuda.call(cuda.set_bytes, address(to), static_cast<unsigned char>(0), bytes, stream_);
}

void CudaMemory::synchronise() {
  const CurrentContext current(context_);
  synchronise_stream();
}

// Waits without a lock: other threads may go on meanwhile.
void CudaMemory::synchronise_stream() {
  const CudaDriver& cuda = context_.driver();
  std::uint64_t stagings = 0;
  {
    const std::lock_guard lock(staging_mutex_);
    stagings = stagings_;
  }
  cuda.call(cuda.stream_synchronise, stream_);
  const std::lock_guard lock(staging_mutex_);
  if (stagings == stagings_) {  // else there is a newer copy that may not be done
    staged_bytes_ = 0;
  }
}

std::shared_ptr<Memory> cuda_memory(void* stream, const Allocator& allocator) {
  return std::make_shared<CudaMemory>(std::make_shared<const CudaDriver>(), stream, allocator);
}

void* stream_of(const Memory& cuda_memory) noexcept {
  const auto* memory = dynamic_cast<const CudaMemory*>(&cuda_memory);
  return memory == nullptr ? nullptr : memory->stream();
}

}  // namespace rnp
