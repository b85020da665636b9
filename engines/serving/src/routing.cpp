#include "routing.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "rnp/error.hpp"

namespace rnp {

void RoutedTensor::put(const Rows& rows, RowData data) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    piece_[rows[i]] = pieces_.size();
    position_[rows[i]] = i;
  }
  pieces_.push_back(std::move(data));
}

RowData RoutedTensor::take(const Rows& rows, Memory& memory, BufferPool& pool) const {
  const RowData& first = pieces_[piece_[rows[0]]];
  const std::size_t start = position_[rows[0]], row_bytes = first.row_bytes;
  bool neighbours = true;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::size_t piece = piece_[rows[i]];
    if (pieces_[piece].row_bytes != row_bytes) {
      throw Error(ErrorCode::kInternal, "samples of different widths were grouped together; please report it");
    }
    neighbours = neighbours && piece == piece_[rows[0]] && position_[rows[i]] == start + i;
  }
  if (neighbours) return {row_of(first.data, start, row_bytes), row_bytes, {}};

  RowData gathered{nullptr, row_bytes, PooledBuffer(pool, bytes_of(rows.size(), row_bytes))};
  gathered.data = gathered.owned.data();
  for (std::size_t begin = 0, end = 0; begin < rows.size(); begin = end) {
    const std::size_t piece = piece_[rows[begin]], position = position_[rows[begin]];
    for (end = begin + 1; end < rows.size(); ++end) {
      if (piece_[rows[end]] != piece || position_[rows[end]] != position + (end - begin)) break;
    }
    memory.copy_within(row_of(gathered.data, begin, row_bytes), row_of(pieces_[piece].data, position, row_bytes),
                       (end - begin) * row_bytes);
  }
  return gathered;
}

Rows first_rows(std::size_t count) {
  Rows rows(count);
  std::iota(rows.begin(), rows.end(), std::size_t{0});
  return rows;
}

std::vector<Rows> rows_by_options(const Rows& rows, const std::int64_t* options, std::size_t decisions,
                                  const std::vector<std::size_t>& columns) {
  const auto compare = [&](std::size_t a, std::size_t b) {
    for (const std::size_t t : columns) {
      const std::int64_t of_a = options[a * decisions + t], of_b = options[b * decisions + t];
      if (of_a != of_b) return of_a < of_b ? -1 : 1;
    }
    return 0;
  };
  Rows sorted = rows;
  std::stable_sort(sorted.begin(), sorted.end(), [&](std::size_t a, std::size_t b) { return compare(a, b) < 0; });
  std::vector<Rows> groups;
  for (const std::size_t row : sorted) {
    if (groups.empty() || compare(groups.back().front(), row) != 0) groups.emplace_back();
    groups.back().push_back(row);
  }
  return groups;
}

}  // namespace rnp
