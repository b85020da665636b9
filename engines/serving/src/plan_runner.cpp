#include "plan_runner.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "rnp/error.hpp"

namespace rnp {
namespace {

// The step from which on all tensors of a sample are small.
std::size_t large_until(const std::vector<Place>& places, const std::vector<TensorSpec>& tensors,
                        std::int64_t large_bytes) {
  std::size_t until = 0;
  for (std::size_t i = 0; i < places.size(); ++i) {
    for (const std::vector<Edge>* edges : {&places[i].inputs, &places[i].outputs}) {
      for (const Edge& edge : *edges) {
        if (tensors[edge.tensor].largest_bytes() > large_bytes) until = i + 1;
      }
    }
  }
  return until;
}

std::size_t samples_of_part(const std::vector<TensorSpec>& tensors, std::int64_t part_bytes) {
  std::int64_t largest = 1;
  for (const TensorSpec& tensor : tensors) largest = std::max(largest, tensor.largest_bytes());
  return static_cast<std::size_t>(std::max(std::int64_t{1}, part_bytes / largest));
}

bool overwrites(const Step& step, const std::string& tensor) {
  return std::any_of(step.in_place.begin(), step.in_place.end(),
                     [&](const auto& names) { return names.second == tensor; });
}

}  // namespace

PlanRunner::PlanRunner(const Plan& plan, const Manifest& manifest, Backend& backend, std::uint64_t budget_bytes,
                       Trace trace, PartLimits limits)
    : manifest_(manifest),
      memory_(backend.memory()),
      on_host_(memory_.on_host()),
      decisions_(manifest.decisions.size()),
      engines_(plan, backend, budget_bytes, [this] { settle(); }),
      places_(places_of_plan(plan, manifest, engines_)),
      workspaces_(plan, manifest.output.name, memory_,
                  [this] {
                    settle();
                    return pool_.drop_idle();
                  }),
      pool_(memory_),
      last_uses_(last_uses(plan)),
      trace_(std::move(trace)) {
  const auto indices = tensor_indices(plan);
  input_ = indices.at(manifest.input.name);
  output_ = indices.at(manifest.output.name);
  penalty_ = indices.at(kPenalty);
  state_ = indices.at(state_name(0));
  last_uses_[output_] = static_cast<std::ptrdiff_t>(places_.size());
  // A device has no caches of this size, and copies between its tensors are cheap.
  if (on_host_) large_until_ = large_until(places_, plan.tensors, limits.large_bytes);
  part_ = samples_of_part(plan.tensors, limits.part_bytes);
  image_bytes_ = row_bytes(input_, nullptr);
  // Where a later step reads the images too, or the first one writes over them, it is to be memory of ours.
  const bool once = on_host_ && last_uses_[input_] == 0 && !overwrites(plan.steps.front(), manifest.input.name);
  copied_bytes_ = once ? static_cast<std::size_t>(limits.copied_bytes) : std::numeric_limits<std::size_t>::max();
}

void PlanRunner::run(const BatchRun& batch) {
  const auto lock = turn();
  run_in_turn(batch);
  pool_.trim();
}

void PlanRunner::open(const std::vector<std::string>& files) {
  const auto lock = turn();
  engines_.open_within_budget(files);
}

MemoryReport PlanRunner::report() const {
  MemoryReport report;
  engines_.report(report);
  report.workspace_bytes = workspaces_.bytes() + pool_.held_bytes();
  return report;
}

// On a device engines are opened, run and released by one thread at a time.
std::unique_lock<std::mutex> PlanRunner::turn() {
  return on_host_ ? std::unique_lock<std::mutex>() : std::unique_lock<std::mutex>(turn_);
}

// Waits for the device, so that memory and calls may be released.
void PlanRunner::settle() noexcept {
  if (on_host_) return;
  try {
    memory_.synchronise();
  } catch (const std::exception&) {
    // A lost device: nothing runs on it any more, and the run itself has thrown.
  }
  in_flight_.clear();
}

void PlanRunner::run_in_turn(const BatchRun& batch) {
  if (large_until_ != 0 && batch.count > part_ && !batch.round_up) {
    Tensors tensors = run_divided(0, batch, nullptr);
    run_regrouped(large_until_, batch, tensors);
    return;
  }
  const auto workspace = workspaces_.lend(batch.count);
  try {
    run_lent(batch, *workspace);
  } catch (...) {
    settle();
    throw;
  }
  if (!on_host_) in_flight_.clear();  // on the host runs of other threads are under way, and nothing is kept
}

void PlanRunner::run_lent(const BatchRun& batch, Workspace& workspace) {
  const Part every{nullptr, batch.count};
  put_inputs(workspace, batch, every);
  const Reached reached = run_together(batch, every, workspace, 0, places_.size());
  std::fill_n(batch.macs, batch.count, reached.macs);
  if (reached.step == places_.size()) {
    memory_.copy_out(batch.outputs, workspace.data(output_), batch.count * row_bytes(output_, batch.options));
    return;
  }
  if (reached.step < large_until_) {
    Tensors tensors = run_divided(reached.step, batch, &workspace);
    run_regrouped(large_until_, batch, tensors);
    return;
  }
  Tensors tensors(last_uses_.size());
  const Rows rows = first_rows(batch.count);
  for (const std::size_t tensor : made_before(reached.step, batch.deciding)) {
    tensors[tensor].emplace(batch.count).put(rows, {workspace.data(tensor), row_bytes(tensor, batch.options), {}});
  }
  run_regrouped(reached.step, batch, tensors);
}

// Whether the first step reads the images where the caller has them.
bool PlanRunner::reads_caller(Part part) const noexcept {
  return part.rows == nullptr && part.count * image_bytes_ >= copied_bytes_;
}

void PlanRunner::put_inputs(Workspace& workspace, const BatchRun& batch, Part part) {
  void* const images = workspace.data(input_);
  if (images != nullptr && !reads_caller(part)) {
    const std::size_t bytes = row_bytes(input_, nullptr);
    for_each_run(nullptr, part.rows, part.count, [&](std::size_t to, std::size_t from, std::size_t rows) {
      void* const here = row_of(images, to, bytes);
      const void* const there = row_of(batch.images, from, bytes);
      if (batch.images_on_device) {
        memory_.copy_within(here, there, rows * bytes);
      } else {
        memory_.copy_in(here, there, rows * bytes);
      }
    });
  }
  if (void* const prices = workspace.data(penalty_); prices != nullptr) {
    for_each_run(nullptr, part.rows, part.count, [&](std::size_t to, std::size_t from, std::size_t rows) {
      memory_.copy_in(row_of(prices, to, sizeof(float)), batch.prices + from, rows * sizeof(float));
    });
  }
  if (void* const state = workspace.data(state_); state != nullptr) {
    memory_.zero(state, part.count * row_bytes(state_, nullptr));
  }
}

// Runs steps from `first` until `until` as long as all samples take the same pieces. Between two convolutions nothing
// of this loop is in the processor's caches: what can be looked up beforehand is.
PlanRunner::Reached PlanRunner::run_together(const BatchRun& batch, Part part, Workspace& workspace, std::size_t first,
                                             std::size_t until) {
  const std::int64_t* const options = batch.options + part[0] * decisions_;  // the others' are the same
  if (!batch.deciding && part.count > 1) until = std::min(until, first_apart(batch, part));
  std::int64_t macs = 0;
  for (std::size_t i = first; i < until; ++i) {
    const Place& place = places_[i];
    if (place.agent_only && !batch.deciding) continue;
    const std::size_t key = place.key_of(options);
    if (i == 0 && reads_caller(part)) {
      bind(place, key, workspace, options, batch.images)->run();
      macs += place.pieces[key].macs;
    } else {
      macs += run_piece(place, key, workspace, options);
    }
    if (place.decides == Place::kNone || !batch.deciding) continue;
    if (!decide(batch, part, place, key, workspace)) return {i + 1, macs};
  }
  return {until, macs};
}

// Returns its MACs. Under a budget calls are bound for once: to keep them would keep their engines.
std::int64_t PlanRunner::run_piece(const Place& place, std::size_t key, Workspace& workspace,
                                   const std::int64_t* options) {
  Workspace::Call& call = workspace.call(place.first_piece + key);
  if (call.bound != nullptr) {
    call.bound->run();
    return call.macs;
  }
  auto bound = bind(place, key, workspace, options);
  bound->run();
  if (engines_.evicts()) {
    done_with(std::move(bound));
  } else {
    call = {std::move(bound), place.pieces[key].macs};
  }
  return place.pieces[key].macs;
}

std::unique_ptr<BoundCall> PlanRunner::bind(const Place& place, std::size_t key, const Workspace& workspace,
                                            const std::int64_t* options, const float* images) {
  const auto views = [&](const std::vector<Edge>& edges) {
    NamedTensors tensors;
    for (const Edge& edge : edges) {
      const bool of_caller = images != nullptr && edge.tensor == input_;
      // Engines take what they read and what they write alike.
      void* const data = of_caller ? const_cast<float*>(images) : workspace.data(edge.tensor);
      tensors.emplace_back(edge.inner, view(edge.tensor, data, workspace.batch(), options));
    }
    return tensors;
  };
  return engines_.get(place.pieces[key].file)->bind(views(place.inputs), views(place.outputs));
}

void PlanRunner::done_with(std::unique_ptr<BoundCall> call) {
  if (!on_host_) in_flight_.push_back(std::move(call));
}

// The first step at which samples of given options take different pieces.
std::size_t PlanRunner::first_apart(const BatchRun& batch, Part part) const {
  std::vector<bool> parted(decisions_, false);
  const std::int64_t* const first = batch.options + part[0] * decisions_;
  for (std::size_t i = 1; i < part.count; ++i) {
    const std::int64_t* const options = batch.options + part[i] * decisions_;
    for (std::size_t t = 0; t < decisions_; ++t) parted[t] = parted[t] || options[t] != first[t];
  }
  for (std::size_t i = 0; i < places_.size(); ++i) {
    for (const Digit& digit : places_[i].digits) {
      if (parted[digit.decision]) return i;
    }
  }
  return places_.size();
}

// Takes down what the agent chose; whether all samples go on together.
bool PlanRunner::decide(const BatchRun& batch, Part part, const Place& place, std::size_t key, Workspace& workspace) {
  const void* column = workspace.data(place.option_tensor);
  if (!on_host_) {
    memory_.copy_out(workspace.host_column(), column, part.count * place.option_bytes);
    in_flight_.clear();
    column = workspace.host_column();
  }
  return options_taken(batch, part, place, key, column);
}

bool PlanRunner::options_taken(const BatchRun& batch, Part part, const Place& place, std::size_t key,
                               const void* column) {
  const bool narrow = place.option_bytes == sizeof(std::int32_t);
  const bool together = narrow ? take_options(batch, part, place, key, static_cast<const std::int32_t*>(column))
                               : take_options(batch, part, place, key, static_cast<const std::int64_t*>(column));
  if (trace_) trace(batch, part, place.decides);
  return together;
}

template <typename Option>
bool PlanRunner::take_options(const BatchRun& batch, Part part, const Place& place, std::size_t key,
                              const Option* column) {
  const auto [low, high] = std::minmax_element(column, column + part.count);
  if (*low < 1 || *high > manifest_.option_count(place.decides)) {
    throw Error(ErrorCode::kEngine, engines_.path_of(place.pieces[key].file) + " chose option " + std::to_string(*low) +
                                        ".." + std::to_string(*high) + "; decision " + std::to_string(place.decides) +
                                        " has 1.." + std::to_string(manifest_.option_count(place.decides)));
  }
  for (std::size_t i = 0; i < part.count; ++i) {
    batch.options[part[i] * decisions_ + place.decides] = batch.round_up ? *high : column[i];
  }
  return batch.round_up || *low == *high;
}

void PlanRunner::trace(const BatchRun& batch, Part part, std::size_t decision) const {
  std::vector<std::int64_t> samples(part.count), options(part.count);
  for (std::size_t i = 0; i < part.count; ++i) {
    samples[i] = static_cast<std::int64_t>(batch.first_sample + part[i]);
    options[i] = batch.options[part[i] * decisions_ + decision];
  }
  const std::chrono::duration<double, std::micro> since = std::chrono::steady_clock::now() - batch.start;
  trace_({decision, manifest_.decisions[decision].conv, samples.data(), options.data(), part.count, since.count()});
}

// Tensors there are before a step and that it or a later one reads.
std::vector<std::size_t> PlanRunner::made_before(std::size_t first, bool deciding) const {
  std::vector<bool> ready(last_uses_.size(), false);
  for (const std::size_t tensor : {input_, penalty_, state_}) ready[tensor] = true;
  for (std::size_t i = 0; i < first; ++i) {
    if (places_[i].agent_only && !deciding) continue;
    for (const Edge& edge : places_[i].outputs) ready[edge.tensor] = true;
  }
  std::vector<std::size_t> made;
  for (std::size_t tensor = 0; tensor < ready.size(); ++tensor) {
    if (ready[tensor] && last_uses_[tensor] >= static_cast<std::ptrdiff_t>(first)) made.push_back(tensor);
  }
  return made;
}

// Of one sample; `options` may be null for a tensor that follows none.
std::size_t PlanRunner::row_bytes(std::size_t tensor, const std::int64_t* options) const {
  const TensorSpec& spec = workspaces_.layout().tensors[tensor];
  std::size_t bytes = byte_size(spec.dtype);
  for (const std::int64_t size : spec.shape_at(options)) bytes *= static_cast<std::size_t>(size);
  return bytes;
}

Tensor PlanRunner::view(std::size_t tensor, void* data, std::size_t count, const std::int64_t* options) const {
  const TensorSpec& spec = workspaces_.layout().tensors[tensor];
  Tensor view{data, spec.dtype, {static_cast<std::int64_t>(count)}};
  const auto shape = spec.shape_at(options);
  view.shape.insert(view.shape.end(), shape.begin(), shape.end());
  return view;
}

}  // namespace rnp
