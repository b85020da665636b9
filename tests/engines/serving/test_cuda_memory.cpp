// Memory of a GPU, on a stand-in for the driver that works lazily and checks
// every address.
#include <catch2/catch.hpp>

#include <cstring>
#include <memory>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "cuda_memory.hpp"
#include "fake_cuda.hpp"
#include "rnp/error.hpp"

using rnp::Allocator;
using rnp::CudaDriver;
using rnp::CudaMemory;
using rnp::Error;
using rnp::ErrorCode;

namespace {

using Catch::Matchers::Contains;

constexpr std::size_t kLarge = 1 << 20;  // more than is staged

std::unique_ptr<CudaMemory> memory_on_stand_in(void* stream = nullptr, const Allocator& allocator = {}) {
  return std::make_unique<CudaMemory>(std::make_shared<const CudaDriver>(FAKE_CUDA_LIBRARY), stream, allocator);
}

std::vector<unsigned char> counted(std::size_t bytes, int first = 0) {
  std::vector<unsigned char> values(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    values[i] = static_cast<unsigned char>(first + static_cast<int>(i % 251));
  }
  return values;
}

std::vector<unsigned char> read(CudaMemory& memory, const void* from, std::size_t bytes) {
  std::vector<unsigned char> values(bytes);
  memory.copy_out(values.data(), from, bytes);
  return values;
}

template <class Call>
Error error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  throw std::logic_error("nothing was thrown");
}

}  // namespace

TEST_CASE("values come back from the device") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  CHECK_FALSE(memory->on_host());
  const std::size_t bytes =
      GENERATE(std::size_t{1}, std::size_t{512}, std::size_t{513}, std::size_t{65536}, std::size_t{65537}, kLarge);
  const auto values = counted(bytes);
  void* first = memory->allocate(bytes);
  void* second = memory->allocate(bytes);
  CHECK(reinterpret_cast<std::uintptr_t>(first) % 256 == 0);
  memory->copy_in(first, values.data(), bytes);
  memory->copy_within(second, first, bytes);
  CHECK(read(*memory, second, bytes) == values);
  memory->zero(first, bytes);
  CHECK(read(*memory, first, bytes) == std::vector<unsigned char>(bytes, 0));
  CHECK(read(*memory, second, bytes) == values);
}

TEST_CASE("nothing is a copy of no bytes") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  void* block = memory->allocate(0);
  CHECK(block != nullptr);
  memory->copy_in(block, nullptr, 0);
  memory->copy_within(block, nullptr, 0);
  memory->zero(block, 0);
  memory->copy_out(nullptr, block, 0);
  CHECK(fake_cuda::counts().queued == 0);
}

TEST_CASE("what was copied in may be written over at once") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  const std::size_t bytes = GENERATE(std::size_t{8}, std::size_t{65536}, kLarge);
  void* block = memory->allocate(bytes);
  const auto values = counted(bytes, 3);
  {
    auto reused = std::make_unique<std::vector<unsigned char>>(values);
    memory->copy_in(block, reused->data(), bytes);
    std::memset(reused->data(), 9, bytes);
  }
  CHECK(read(*memory, block, bytes) == values);
}

TEST_CASE("small copies wait for nothing as long as there is room") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  void* block = memory->allocate(1000);
  const auto values = counted(1000);
  const auto before = fake_cuda::counts().synchronisations;
  for (int i = 0; i < 100; ++i) {
    memory->copy_in(block, values.data(), values.size());
  }
  CHECK(fake_cuda::counts().synchronisations == before);
}

TEST_CASE("more than fits the staging memory keeps its values") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  std::vector<void*> blocks;
  for (int i = 0; i < 20; ++i) {  // 20 × 60,000 bytes
    blocks.push_back(memory->allocate(60000));
    memory->copy_in(blocks.back(), counted(60000, i).data(), 60000);
  }
  for (int i = 0; i < 20; ++i) {
    CHECK(read(*memory, blocks[static_cast<std::size_t>(i)], 60000) == counted(60000, i));
  }
}

TEST_CASE("staging memory is free again once the stream was waited for") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  void* block = memory->allocate(60000);
  const auto values = counted(60000);
  const auto before = fake_cuda::counts().synchronisations;
  for (int i = 0; i < 20; ++i) {
    memory->copy_in(block, values.data(), values.size());
    memory->synchronise();
  }
  CHECK(fake_cuda::counts().synchronisations == before + 20);
}

TEST_CASE(
    "what another thread copies in while the stream is waited for keeps "
    "its staging memory") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  void* first = memory->allocate(16);
  void* second = memory->allocate(16);
  fake_cuda::at_next_synchronisation([&] { memory->copy_in(first, counted(16, 1).data(), 16); });
  memory->synchronise();
  memory->copy_in(second, counted(16, 2).data(), 16);
  CHECK(read(*memory, first, 16) == counted(16, 1));
  CHECK(read(*memory, second, 16) == counted(16, 2));
}

TEST_CASE("work is in the order of one stream") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  void* block = memory->allocate(16);
  void* kept = memory->allocate(16);
  memory->copy_in(block, counted(16, 1).data(), 16);
  memory->copy_within(kept, block, 16);
  memory->copy_in(block, counted(16, 2).data(), 16);
  CHECK(fake_cuda::counts().queued == 3);
  CHECK(read(*memory, kept, 16) == counted(16, 1));
  CHECK(read(*memory, block, 16) == counted(16, 2));
}

TEST_CASE("released blocks are used again without waiting") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  void* first = memory->allocate(400);
  memory->copy_in(first, counted(400).data(), 400);
  memory->release(first);
  CHECK(memory->allocate(360) == first);
  void* second = memory->allocate(360);
  CHECK(second != first);
  CHECK(fake_cuda::counts().allocations == 2);
  CHECK(fake_cuda::counts().synchronisations == 0);
}

TEST_CASE("other sizes do not get blocks that are too small") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  void* small = memory->allocate(512);
  memory->release(small);
  void* larger = memory->allocate(513);
  CHECK(larger != small);
  memory->zero(larger, 513);
  memory->synchronise();
}

TEST_CASE("many released blocks come back each once") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  std::set<void*> blocks;
  for (int i = 0; i < 50; ++i) {
    blocks.insert(memory->allocate(1000));
  }
  for (void* block : blocks) {
    memory->release(block);
  }
  std::set<void*> again;
  for (int i = 0; i < 50; ++i) {
    again.insert(memory->allocate(1000));
  }
  CHECK(again == blocks);
  CHECK(fake_cuda::counts().allocations == 50);
  memory->release(nullptr);
  memory->release(&again);  // not of this memory
}

TEST_CASE("kept blocks are given back before memory is short") {
  fake_cuda::reset(4096);
  const auto memory = memory_on_stand_in();
  void* blocks[] = {memory->allocate(2048), memory->allocate(2048)};
  memory->zero(blocks[0],
               2048);  // still in the stream when the block is given back
  for (void* block : blocks) {
    memory->release(block);
  }
  void* large = memory->allocate(4096);
  CHECK(fake_cuda::counts().used_bytes == 4096);
  memory->zero(large, 4096);
  memory->synchronise();
  const Error error = error_of([&] { memory->allocate(1); });
  CHECK(error.code() == ErrorCode::kDevice);
  CHECK_THAT(error.what(), Contains("out of memory") && Contains("memory_budget_bytes"));
  memory->release(large);
  CHECK(memory->allocate(1) != nullptr);
}

TEST_CASE("give_back returns what is free and nothing else") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  void* used = memory->allocate(100);
  memory->release(memory->allocate(5000));
  memory->release(memory->allocate(100));
  memory->give_back();
  CHECK(fake_cuda::counts().blocks == 1);
  CHECK(fake_cuda::is_allocated(used, 100));
  memory->release(used);
  CHECK(memory->allocate(100) == used);
}

TEST_CASE("a tensor that no GPU holds is refused before it is asked for") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  const Error error = error_of([&] { memory->allocate(~std::size_t{0}); });
  CHECK(error.code() == ErrorCode::kDevice);
  CHECK_THAT(error.what(), Contains("18446744073709551615 bytes"));
}

TEST_CASE("all is given back at the end") {
  fake_cuda::reset();
  {
    const auto memory = memory_on_stand_in();
    void* kept = memory->allocate(10);
    memory->release(memory->allocate(10000));
    memory->zero(kept, 10);  // in the stream at the end
    const auto counts = fake_cuda::counts();
    CHECK((counts.blocks == 2 && counts.pinned == 1 && counts.streams == 1 && counts.contexts == 1));
  }
  const auto counts = fake_cuda::counts();
  CHECK((counts.blocks == 0 && counts.pinned == 0 && counts.streams == 0 && counts.contexts == 0));
  CHECK(counts.freed_early == 0);
}

TEST_CASE("what fails while it is made leaves nothing behind") {
  fake_cuda::reset();
  const std::string function =
      GENERATE("cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemHostAlloc", "cuStreamCreate");
  fake_cuda::fail_next(function, 2);
  const Error error = error_of([] { memory_on_stand_in(); });
  CHECK(error.code() == ErrorCode::kDevice);
  CHECK_THAT(error.what(), Contains(function));
  const auto counts = fake_cuda::counts();
  CHECK((counts.blocks == 0 && counts.pinned == 0 && counts.streams == 0 && counts.contexts == 0));
}

TEST_CASE("calls that fail say so in the driver's words") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  void* block = memory->allocate(kLarge);
  std::vector<unsigned char> host(kLarge);
  const auto refused = [&](const char* function, const std::function<void()>& call) {
    fake_cuda::fail_next(function, 700);
    const Error error = error_of(call);
    CHECK(error.code() == ErrorCode::kDevice);
    CHECK_THAT(error.what(), Contains(function) && Contains("illegal memory access"));
    CHECK_FALSE(fake_cuda::is_current());
  };
  refused("cuMemAlloc_v2", [&] { memory->allocate(kLarge); });
  refused("cuMemcpyHtoDAsync_v2", [&] { memory->copy_in(block, host.data(), 8); });
  refused("cuMemcpyHtoDAsync_v2", [&] { memory->copy_in(block, host.data(), kLarge); });
  refused("cuMemcpyDtoHAsync_v2", [&] { memory->copy_out(host.data(), block, 8); });
  refused("cuMemcpyDtoDAsync_v2", [&] { memory->copy_within(block, block, 8); });
  refused("cuMemsetD8Async", [&] { memory->zero(block, 8); });
  refused("cuStreamSynchronize", [&] { memory->synchronise(); });
}

TEST_CASE("work that reaches outside of its block is told when it is waited for") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  void* block = memory->allocate(512);
  memory->zero(block, 513);
  CHECK(error_of([&] { memory->synchronise(); }).code() == ErrorCode::kDevice);
}

TEST_CASE("the caller's stream is worked in and left alone") {
  fake_cuda::reset();
  const auto owner = memory_on_stand_in();
  {
    const auto memory = memory_on_stand_in(owner->stream());
    CHECK(rnp::stream_of(*memory) == owner->stream());
    CHECK(fake_cuda::counts().streams == 1);
    void* block = memory->allocate(8);
    memory->zero(block, 8);
    CHECK(fake_cuda::counts().queued == 1);
    CHECK(read(*memory, block, 8) == std::vector<unsigned char>(8, 0));
  }
  CHECK(fake_cuda::counts().streams == 1);
}

TEST_CASE("streams of other contexts and of each thread are refused") {
  fake_cuda::reset();
  const Error foreign = error_of([] { memory_on_stand_in(fake_cuda::foreign_stream()); });
  CHECK(foreign.code() == ErrorCode::kDevice);
  CHECK_THAT(foreign.what(), Contains("CUDA_VISIBLE_DEVICES"));
  const Error per_thread = error_of([] { memory_on_stand_in(reinterpret_cast<void*>(2)); });
  CHECK(per_thread.code() == ErrorCode::kInput);
  CHECK_THAT(per_thread.what(), Contains("cudaStreamPerThread"));
  CHECK(fake_cuda::counts().pinned == 0);
}

namespace {

// Takes its memory from another CudaMemory, as a caller's pool would.
struct Pool {
  CudaMemory& source;
  std::size_t left;
  std::size_t offset = 0;  // of what it gives, from where it is aligned
  std::size_t taken = 0, returned = 0;

  Allocator allocator() {
    return {[](void* context, std::size_t bytes) -> void* {
              Pool& pool = *static_cast<Pool*>(context);
              if (bytes > pool.left) {
                return nullptr;
              }
              pool.left -= bytes;
              ++pool.taken;
              return static_cast<std::byte*>(pool.source.allocate(bytes)) + pool.offset;
            },
            [](void* context, void* data) {
              Pool& pool = *static_cast<Pool*>(context);
              ++pool.returned;
              pool.source.release(static_cast<std::byte*>(data) - pool.offset);
            },
            this};
  }
};

}  // namespace

TEST_CASE("the caller's allocator is used, and gets everything back") {
  fake_cuda::reset();
  const auto source = memory_on_stand_in();
  Pool pool{*source, 1 << 20};
  {
    const auto memory = memory_on_stand_in(nullptr, pool.allocator());
    void* block = memory->allocate(100);
    memory->zero(block, 100);
    CHECK(pool.taken == 1);
    memory->release(block);
    CHECK(pool.returned == 0);  // the stream may still use it
    CHECK(memory->allocate(100) == block);
    CHECK(read(*memory, block, 100) == std::vector<unsigned char>(100, 0));
  }
  CHECK(pool.returned == pool.taken);
}

TEST_CASE("the caller's allocator gets kept blocks back before memory is short") {
  fake_cuda::reset();
  const auto source = memory_on_stand_in();
  Pool pool{*source, 4096};
  const auto memory = memory_on_stand_in(nullptr, pool.allocator());
  memory->release(memory->allocate(4096));
  const Error error = error_of([&] { memory->allocate(512); });  // this pool never has more again
  CHECK(pool.returned == 1);
  CHECK(error.code() == ErrorCode::kDevice);
  CHECK_THAT(error.what(), Contains("the caller's allocator") && Contains("out of memory"));
}

TEST_CASE("allocators that cannot be used are refused") {
  fake_cuda::reset();
  const auto source = memory_on_stand_in();
  Pool pool{*source, 4096, 64};
  const auto memory = memory_on_stand_in(nullptr, pool.allocator());
  const Error error = error_of([&] { memory->allocate(512); });
  CHECK(error.code() == ErrorCode::kInput);
  CHECK_THAT(error.what(), Contains("not aligned to 256 bytes"));
  CHECK(pool.returned == 1);
  Allocator half = pool.allocator();
  half.release = nullptr;
  CHECK(error_of([&] { memory_on_stand_in(nullptr, half); }).code() == ErrorCode::kInput);
}

TEST_CASE("threads work side by side") {
  fake_cuda::reset();
  const auto memory = memory_on_stand_in();
  std::vector<std::thread> threads;
  std::vector<int> right(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 200; ++round) {
        const std::size_t bytes = 100 + static_cast<std::size_t>(997 * round + t) % 20000;
        void* block = memory->allocate(bytes);
        const auto values = counted(bytes, t + round);
        memory->copy_in(block, values.data(), bytes);
        right[static_cast<std::size_t>(t)] += read(*memory, block, bytes) == values ? 1 : 0;
        memory->release(block);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  CHECK(right == std::vector<int>(4, 200));
  memory->give_back();
  CHECK(fake_cuda::counts().blocks == 0);
}

TEST_CASE("host memory has no stream") {
  struct Host final : rnp::Memory {
    bool on_host() const noexcept override { return true; }
    void* allocate(std::size_t) override { return nullptr; }
    void release(void*) noexcept override {}
    void copy_in(void*, const void*, std::size_t) override {}
    void copy_out(void*, const void*, std::size_t) override {}
    void copy_within(void*, const void*, std::size_t) override {}
    void zero(void*, std::size_t) override {}
    void synchronise() override {}
  };
  CHECK(rnp::stream_of(Host()) == nullptr);
}
