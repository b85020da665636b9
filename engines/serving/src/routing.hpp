// Tensors of a batch whose samples took different branches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory.hpp"

namespace rnp {

// Rows of one tensor, of one width: the memory they lie in, and what has to be kept alive for it.
struct RowData {
  void* data = nullptr;
  std::size_t row_bytes = 0;
  PooledBuffer owned{};  // empty where the memory is another's
};

// The rows of one tensor, in as many pieces as branches made it.
class RoutedTensor {
 public:
  RoutedTensor() = default;
  // Of a batch of N.
  explicit RoutedTensor(std::size_t batch) : piece_(batch), position_(batch) {}

  // Gives samples `rows` the rows 0, 1, 2, … of `data`, which is kept, not copied.
  void put(const Rows& rows, RowData data);

  // The rows of these samples, at least one, in their order; all have to be of one width.
  // No copy is made where they are neighbours in one piece, in its order: then valid as long as this is.
  RowData take(const Rows& rows, Memory& memory, BufferPool& pool) const;

 private:
  std::vector<RowData> pieces_;
  std::vector<std::size_t> piece_, position_;  // by sample
};

// 0, 1, …, count - 1.
Rows first_rows(std::size_t count);

// Those of `rows` that have the same options of some decisions, by rising options; each group in the order of `rows`.
// `options` [N, T], `columns` those decisions.
std::vector<Rows> rows_by_options(const Rows& rows, const std::int64_t* options, std::size_t decisions,
                                  const std::vector<std::size_t>& columns);

}  // namespace rnp
