// What a plan runner does once samples part: parts of a batch while tensors are large, then groups by option.
#include <algorithm>
#include <cstddef>
#include <utility>

#include "plan_runner.hpp"

namespace rnp {

// Runs steps `first` until tensors are small, in parts that fit the caches; what is left for later. Samples of equal
// options so far are in one part, until they part too; then each goes by itself. `source` holds what the steps before
// made; null before the first.
PlanRunner::Tensors PlanRunner::run_divided(std::size_t first, const BatchRun& batch, const Workspace* source) {
  if (first == 0) std::fill_n(batch.macs, batch.count, 0);
  Tensors made(last_uses_.size());
  std::vector<bool> read(decisions_, false);
  for (std::size_t i = 0; i < large_until_; ++i) {
    for (const Digit& digit : places_[i].digits) read[digit.decision] = true;
  }
  std::vector<std::size_t> columns;
  for (std::size_t t = 0; t < decisions_; ++t) {
    if (read[t]) columns.push_back(t);
  }
  for (const Rows& rows : rows_by_options(first_rows(batch.count), batch.options, decisions_, columns)) {
    for (std::size_t k = 0; k < rows.size(); k += part_) {
      const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(k);
      const Rows part(begin, begin + static_cast<std::ptrdiff_t>(std::min(part_, rows.size() - k)));
      run_part(first, batch, part, part, source, made);
    }
  }
  return made;
}

// Goes on from step `start` with samples `rows` of the batch, which are rows `here` of `source`.
void PlanRunner::run_part(std::size_t start, const BatchRun& batch, const Rows& rows, const Rows& here,
                          const Workspace* source, Tensors& made) {
  const Part part{rows.data(), rows.size()};
  const std::int64_t* const options = batch.options + rows[0] * decisions_;
  const auto own = workspaces_.lend(rows.size());
  if (source == nullptr) {
    put_inputs(*own, batch, part);
  } else {
    for (const std::size_t tensor : made_before(start, batch.deciding)) {
      copy_rows(memory_, own->data(tensor), nullptr, source->data(tensor), here.data(), rows.size(),
                row_bytes(tensor, options));
    }
  }
  const Reached reached = run_together(batch, part, *own, start, large_until_);
  for (const std::size_t row : rows) batch.macs[row] += reached.macs;
  if (reached.step < large_until_) {
    for (std::size_t i = 0; i < rows.size(); ++i) run_part(reached.step, batch, {rows[i]}, {i}, &*own, made);
    return;
  }
  for (const std::size_t tensor : made_before(large_until_, batch.deciding)) {
    const std::size_t bytes = row_bytes(tensor, options);
    RowData copy{nullptr, bytes, PooledBuffer(pool_, rows.size() * bytes)};
    copy.data = copy.owned.data();
    memory_.copy_within(copy.data, own->data(tensor), rows.size() * bytes);
    if (!made[tensor]) made[tensor].emplace(batch.count);
    made[tensor]->put(rows, std::move(copy));
  }
}

// From step `first` on, those of the batch that take the same piece run together.
void PlanRunner::run_regrouped(std::size_t first, const BatchRun& batch, Tensors& tensors) {
  for (std::size_t i = first; i < places_.size(); ++i) {
    if (batch.deciding || !places_[i].agent_only) run_step(i, batch, tensors);
    for (const Edge& edge : places_[i].inputs) {
      if (last_uses_[edge.tensor] == static_cast<std::ptrdiff_t>(i)) tensors[edge.tensor].reset();
    }
  }
  const RowData outputs = tensors[output_]->take(first_rows(batch.count), memory_, pool_);
  memory_.copy_out(batch.outputs, outputs.data, batch.count * outputs.row_bytes);
}

// Runs each piece of a step on the samples that take it.
void PlanRunner::run_step(std::size_t step, const BatchRun& batch, Tensors& tensors) {
  const Place& place = places_[step];
  std::vector<RoutedTensor> made;
  for (std::size_t i = 0; i < place.outputs.size(); ++i) made.emplace_back(batch.count);
  for (const Rows& rows : rows_by_options(first_rows(batch.count), batch.options, decisions_, place.decisions())) {
    run_group(place, batch, rows, tensors, made);
  }
  for (std::size_t i = 0; i < made.size(); ++i) tensors[place.outputs[i].tensor] = std::move(made[i]);
}

void PlanRunner::run_group(const Place& place, const BatchRun& batch, const Rows& rows, Tensors& tensors,
                           std::vector<RoutedTensor>& made) {
  const std::int64_t* const options = batch.options + rows[0] * decisions_;
  const std::size_t key = place.key_of(options);
  std::vector<RowData> taken;  // alive until the call is in the stream
  NamedTensors inputs, outputs;
  for (const Edge& edge : place.inputs) {
    taken.push_back(tensors[edge.tensor]->take(rows, memory_, pool_));
    inputs.emplace_back(edge.inner, view(edge.tensor, taken.back().data, rows.size(), options));
  }
  const void* column = nullptr;
  for (std::size_t i = 0; i < place.outputs.size(); ++i) {
    const std::size_t tensor = place.outputs[i].tensor, bytes = row_bytes(tensor, options);
    RowData result{nullptr, bytes, PooledBuffer(pool_, bytes_of(rows.size(), bytes))};
    result.data = result.owned.data();
    outputs.emplace_back(place.outputs[i].inner, view(tensor, result.data, rows.size(), options));
    if (tensor == place.option_tensor) column = result.data;
    made[i].put(rows, std::move(result));
  }
  auto call = engines_.get(place.pieces[key].file)->bind(inputs, outputs);
  call->run();
  done_with(std::move(call));
  for (const std::size_t row : rows) batch.macs[row] += place.pieces[key].macs;
  if (place.decides == Place::kNone || !batch.deciding) return;
  std::vector<std::byte> on_host;
  if (!on_host_) {
    on_host.resize(rows.size() * sizeof(std::int64_t));
    memory_.copy_out(on_host.data(), column, rows.size() * place.option_bytes);
    in_flight_.clear();
    column = on_host.data();
  }
  options_taken(batch, {rows.data(), rows.size()}, place, key, column);
}

}  // namespace rnp
