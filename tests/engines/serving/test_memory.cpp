#include "memory.hpp"

#include <catch2/catch.hpp>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <tuple>

#include "backends.hpp"
#include "errors.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

// Counts what it gives and takes back; 64 bytes aligned but for `shift`.
struct Counting {
  int allocated = 0, released = 0, alive = 0;
  std::size_t shift = 0;
  bool exhausted = false;

  Allocator allocator() {
    return {[](void* context, std::size_t bytes) -> void* {
              auto& self = *static_cast<Counting*>(context);
              if (self.exhausted) return nullptr;
              ++self.allocated;
              ++self.alive;
              return static_cast<char*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64)) + self.shift;
            },
            [](void* context, void* data) {
              auto& self = *static_cast<Counting*>(context);
              ++self.released;
              --self.alive;
              std::free(static_cast<char*>(data) - self.shift);
            },
            this};
  }
};

}  // namespace

TEST_CASE("The host's memory is aligned") {
  const auto memory = host_memory({});
  for (const std::size_t bytes : {0, 1, 63, 64, 65, 100000}) {
    const Buffer buffer(*memory, bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64 == 0);
    memory->zero(buffer.data(), bytes);
  }
}

TEST_CASE("A caller's allocator gives all memory and takes it back") {
  Counting counting;
  {
    const auto memory = host_memory(counting.allocator());
    const Buffer one(*memory, 10);
    Buffer two(*memory, 1000);
    Buffer moved(std::move(two));
    CHECK(two.data() == nullptr);
    CHECK(counting.alive == 2);
  }
  CHECK(counting.allocated == 2);
  CHECK(counting.released == 2);
}

TEST_CASE("An allocator that does not fit is refused") {
  Counting counting;
  Allocator half = counting.allocator();
  half.release = nullptr;
  CHECK(error_of([&] { host_memory(half); }) == "input: only one of");
  half = counting.allocator();
  half.allocate = nullptr;
  CHECK(error_of([&] { host_memory(half); }) == "input: only one of");
  counting.shift = 32;
  const auto memory = host_memory(counting.allocator());
  CHECK(error_of([&] { memory->allocate(10); }) == "input: not aligned");
  CHECK(counting.alive == 0);
  counting.exhausted = true;
  CHECK(error_of([&] { memory->allocate(10); }) == "memory: 10 bytes");
}

TEST_CASE("More memory than there is, is an error") {
  const auto memory = host_memory({});
  CHECK(error_of([&] { memory->allocate(std::numeric_limits<std::size_t>::max()); }) == "memory: no memory");
  CHECK(error_of([&] { memory->allocate(std::numeric_limits<std::size_t>::max() / 2); }) == "memory: no memory");
  CHECK(bytes_of(3, 5) == 15);
  CHECK(bytes_of(3, 0) == 0);
  CHECK(error_of([] { bytes_of(std::size_t{1} << 32, std::size_t{1} << 32); }) == "input: can be addressed");
  CHECK(error_of([] { bytes_of(std::size_t{1} << 32, std::size_t{1} << 31); }) == "input: can be addressed");
}

TEST_CASE("Buffers are used again, and much larger ones are not") {
  Counting counting;
  const auto memory = host_memory(counting.allocator());
  BufferPool pool(*memory);
  { const PooledBuffer first(pool, 1000); }
  CHECK(pool.held_bytes() == 1000);
  { const PooledBuffer again(pool, 900); }
  CHECK(counting.allocated == 1);
  const PooledBuffer small(pool, 100);
  CHECK(counting.allocated == 2);
  { const PooledBuffer larger(pool, 2000); }
  CHECK(counting.allocated == 3);
  CHECK(pool.held_bytes() == 3100);
  pool.trim();
  CHECK(counting.released == 0);
}

TEST_CASE(
    "Idle buffers beyond the limit are released, the largest first, once "
    "nothing is under way") {
  Counting counting;
  const auto memory = host_memory(counting.allocator());
  BufferPool pool(*memory);
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  { const PooledBuffer a(pool, 150 * kMiB), b(pool, 100 * kMiB), c(pool, 50 * kMiB); }
  CHECK(counting.released == 0);
  pool.trim();
  CHECK(counting.released == 1);
  CHECK(pool.held_bytes() == 150 * kMiB);
}

TEST_CASE("Rows that are neighbours on both sides go in one copy") {
  using Copies = std::vector<std::tuple<std::size_t, std::size_t, std::size_t>>;
  const auto copies = [](const Rows* to, const Rows* from, std::size_t count) {
    Copies made;
    for_each_run(to == nullptr ? nullptr : to->data(), from == nullptr ? nullptr : from->data(), count,
                 [&](std::size_t a, std::size_t b, std::size_t rows) { made.emplace_back(a, b, rows); });
    return made;
  };
  const Rows gaps{0, 1, 3, 4, 5, 2}, other{7, 8, 9, 1, 2, 3};
  CHECK(copies(nullptr, nullptr, 5) == Copies{{0, 0, 5}});
  CHECK(copies(nullptr, nullptr, 0).empty());
  CHECK(copies(nullptr, &gaps, 6) == Copies{{0, 0, 2}, {2, 3, 3}, {5, 2, 1}});
  CHECK(copies(&gaps, nullptr, 6) == Copies{{0, 0, 2}, {3, 2, 3}, {2, 5, 1}});
  CHECK(copies(&gaps, &other, 6) == Copies{{0, 7, 2}, {3, 9, 1}, {4, 1, 2}, {2, 3, 1}});
}

TEST_CASE("Rows are copied to where they belong") {
  const auto memory = host_memory({});
  const std::vector<std::int32_t> from{0, 0, 1, 1, 2, 2, 3, 3};
  std::vector<std::int32_t> to(6, -1);
  const Rows rows{3, 0, 1}, places{2, 0, 1};
  copy_rows(*memory, to.data(), places.data(), from.data(), rows.data(), 3, 8);
  CHECK(to == std::vector<std::int32_t>{0, 0, 1, 1, 3, 3});
}
