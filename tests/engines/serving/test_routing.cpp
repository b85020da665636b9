#include "routing.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <random>

#include "backends.hpp"
#include "errors.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

std::vector<std::int32_t> taken(const RowData& data, std::size_t rows) {
  const auto* const first = static_cast<const std::int32_t*>(data.data);
  return {first, first + rows * data.row_bytes / sizeof(std::int32_t)};
}

}  // namespace

TEST_CASE("Rows come back from wherever they were put") {
  const auto memory = host_memory({});
  BufferPool pool(*memory);
  std::mt19937 random(0);
  for (int round = 0; round < 50; ++round) {
    const std::size_t batch = 1 + random() % 9;
    Rows order = first_rows(batch);
    std::shuffle(order.begin(), order.end(), random);
    RoutedTensor tensor(batch);
    std::vector<std::vector<std::int32_t>> kept;
    for (std::size_t begin = 0; begin < batch;) {
      const std::size_t count = 1 + random() % (batch - begin);
      const Rows rows(order.begin() + static_cast<std::ptrdiff_t>(begin),
                      order.begin() + static_cast<std::ptrdiff_t>(begin + count));
      std::vector<std::int32_t> values;
      for (const std::size_t row : rows) {
        for (int i = 0; i < 3; ++i) values.push_back(static_cast<std::int32_t>(row * 10) + i);
      }
      kept.push_back(std::move(values));
      tensor.put(rows, {kept.back().data(), 12, {}});
      begin += count;
    }
    std::shuffle(order.begin(), order.end(), random);
    order.resize(1 + random() % batch);
    std::vector<std::int32_t> expected;
    for (const std::size_t row : order) {
      for (int i = 0; i < 3; ++i) expected.push_back(static_cast<std::int32_t>(row * 10) + i);
    }
    CHECK(taken(tensor.take(order, *memory, pool), order.size()) == expected);
  }
}

TEST_CASE("Neighbours in one piece are not copied") {
  const auto memory = host_memory({});
  BufferPool pool(*memory);
  std::vector<std::int32_t> values{0, 1, 2, 3};
  RoutedTensor tensor(5);
  tensor.put({4, 1, 2, 3}, {values.data(), 4, {}});
  CHECK(tensor.take({1, 2}, *memory, pool).data == values.data() + 1);
  CHECK(tensor.take({4, 1, 2, 3}, *memory, pool).data == values.data());
  CHECK(taken(tensor.take({2, 1}, *memory, pool), 2) == std::vector<std::int32_t>{2, 1});
  CHECK(pool.held_bytes() == 64);
}

TEST_CASE("Rows of different widths are not taken together") {
  const auto memory = host_memory({});
  BufferPool pool(*memory);
  std::vector<std::int32_t> values{0, 1, 2, 3};
  RoutedTensor tensor(2);
  tensor.put({0}, {values.data(), 4, {}});
  tensor.put({1}, {values.data(), 8, {}});
  CHECK(error_of([&] { tensor.take({0, 1}, *memory, pool); }) == "internal: different widths");
}

TEST_CASE("Samples are grouped by options, which rise, each group in its order") {
  const std::vector<std::int64_t> options{2, 1, 9,  //
                                          1, 2, 9,  //
                                          2, 1, 8,  //
                                          1, 1, 9,  //
                                          1, 2, 7};
  const auto groups = [&](const std::vector<std::size_t>& columns) {
    return rows_by_options(first_rows(5), options.data(), 3, columns);
  };
  CHECK(groups({0, 1}) == std::vector<Rows>{{3}, {1, 4}, {0, 2}});
  CHECK(groups({1, 0}) == std::vector<Rows>{{3}, {0, 2}, {1, 4}});
  CHECK(groups({2}) == std::vector<Rows>{{4}, {2}, {0, 1, 3}});
  CHECK(groups({}) == std::vector<Rows>{{0, 1, 2, 3, 4}});
  CHECK(rows_by_options({4, 1}, options.data(), 3, {0}) == std::vector<Rows>{{4, 1}});
}
