// Memory of the first visible GPU, and the one stream in whose order all that is done with it happens.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "cuda_driver.hpp"
#include "rnp/engine.hpp"

namespace rnp {

// Released blocks are kept for later tensors of about the same size: giving them back to the driver would make it
// wait for the GPU. They may be used again at once, since all work is in the order of one stream.
// From any thread; what threads put into the stream is in the order in which they did.
class CudaMemory final : public Memory {
 public:
  // `stream`: the caller's, which must outlive this; null: one of its own. Throws Error(kDevice), Error(kInput).
  CudaMemory(std::shared_ptr<const CudaDriver> driver, CuStream stream, const Allocator& allocator);
  ~CudaMemory() override;
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  bool on_host() const noexcept override { return false; }
  void* allocate(std::size_t bytes) override;
  void release(void* data) noexcept override;
  void copy_in(void* to, const void* from_host, std::size_t bytes) override;
  void copy_out(void* to_host, const void* from, std::size_t bytes) override;
  void copy_within(void* to, const void* from, std::size_t bytes) override;
  void zero(void* to, std::size_t bytes) override;
  void synchronise() override;

  // Returns the blocks that are kept, for whoever else allocates on the device. Throws Error(kDevice).
  void give_back();

  CuStream stream() const noexcept { return stream_; }
  const CudaContext& context() const noexcept { return context_; }

 private:
  struct Block {
    std::size_t size_class = 0;
    void* next_free = nullptr;
  };

  void use_stream(CuStream callers);
  void* new_block(std::size_t bytes);
  void* block_from_source(std::size_t bytes);
  void return_to_source(void* block) noexcept;
  void give_back_locked();
  void copy_in_staged(CuPointer to, const void* from_host, std::size_t bytes);
  void synchronise_stream();

  CudaContext context_;
  const Allocator allocator_;
  CuStream stream_ = nullptr;
  bool owns_stream_ = false;

  std::mutex blocks_mutex_;
  std::map<void*, Block> blocks_;       // all there are
  std::array<void*, 64> first_free_{};  // by size class: blocks of 2^class bytes

  std::mutex staging_mutex_;
  std::byte* staging_ = nullptr;  // pinned
  std::size_t staged_bytes_ = 0;  // of it, that the stream may still read
  std::uint64_t stagings_ = 0;    // so far
};

}  // namespace rnp
