// Going through a plan: bound calls while a batch agrees, regrouped by option once it does not.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine_cache.hpp"
#include "memory.hpp"
#include "plan_places.hpp"
#include "rnp/controller.hpp"
#include "routing.hpp"
#include "workspace.hpp"

namespace rnp {

// What one run is given, and where its results go: the caller's, of `count` samples each.
struct BatchRun {
  const float* images = nullptr;  // [N, C, H, W]
  bool images_on_device = false;
  const float* prices = nullptr;    // [N]; without a say where not `deciding`
  std::int64_t* options = nullptr;  // [N, T], given, or written where `deciding`
  std::size_t count = 0;            // N
  bool deciding = true;             // the agent chooses
  bool round_up = false;            // every sample takes the largest option chosen in the batch
  float* outputs = nullptr;         // [N, ...]
  std::int64_t* macs = nullptr;     // [N]
  std::size_t first_sample = 0;     // of the caller's batch, for the trace
  std::chrono::steady_clock::time_point start{};
};

// When a batch goes through the host's caches in parts; as in Python, where docs/engine-sets.md has the measurements.
struct PartLimits {
  // A tensor of one sample above this is large: to move it from part to part costs more than calls of more samples
  // save.
  std::int64_t large_bytes = std::int64_t{1} << 18;
  // A part of a batch may have its largest tensor of this size, and at least one sample: larger ones leave the caches
  // before they are pooled.
  std::int64_t part_bytes = std::int64_t{1} << 24;
  // Images of a batch from this size on are read where the caller has them: to copy 600 kB takes 60 µs, to bind a call
  // anew 10.
  std::int64_t copied_bytes = std::int64_t{1} << 17;
};

// Runs a plan. Safe in many threads; on a device one batch runs at a time.
class PlanRunner {
 public:
  using Trace = std::function<void(const DecisionEvent&)>;

  // `manifest` is kept by reference; `backend` and its memory have to outlive it. Throws Error(kPlan).
  PlanRunner(const Plan& plan, const Manifest& manifest, Backend& backend, std::uint64_t budget_bytes = 0,
             Trace trace = {}, PartLimits limits = {});

  // Throws Error: kEngine, kDevice, kMemory, kInput where N is too large, and what opening an engine throws.
  void run(const BatchRun& batch);
  // Opens engines in this order, as far as the budget goes.
  void open(const std::vector<std::string>& files);
  MemoryReport report() const;

 private:
  // Some rows of a batch; null: all of them.
  struct Part {
    const std::size_t* rows;
    std::size_t count;
    std::size_t operator[](std::size_t i) const noexcept { return rows == nullptr ? i : rows[i]; }
  };
  struct Reached {
    std::size_t step;   // not run any more
    std::int64_t macs;  // of a sample
  };
  using Tensors = std::vector<std::optional<RoutedTensor>>;  // by tensor of the plan

  std::unique_lock<std::mutex> turn();
  void settle() noexcept;

  void run_in_turn(const BatchRun& batch);
  void run_lent(const BatchRun& batch, Workspace& workspace);
  bool reads_caller(Part part) const noexcept;
  void put_inputs(Workspace& workspace, const BatchRun& batch, Part part);
  Reached run_together(const BatchRun& batch, Part part, Workspace& workspace, std::size_t first, std::size_t until);
  std::int64_t run_piece(const Place& place, std::size_t key, Workspace& workspace, const std::int64_t* options);
  std::unique_ptr<BoundCall> bind(const Place& place, std::size_t key, const Workspace& workspace,
                                  const std::int64_t* options, const float* images = nullptr);
  std::size_t first_apart(const BatchRun& batch, Part part) const;
  bool decide(const BatchRun& batch, Part part, const Place& place, std::size_t key, Workspace& workspace);
  template <typename Option>
  bool take_options(const BatchRun& batch, Part part, const Place& place, std::size_t key, const Option* column);
  bool options_taken(const BatchRun& batch, Part part, const Place& place, std::size_t key, const void* column);
  void trace(const BatchRun& batch, Part part, std::size_t decision) const;

  Tensors run_divided(std::size_t first, const BatchRun& batch, const Workspace* source);
  void run_part(std::size_t start, const BatchRun& batch, const Rows& rows, const Rows& here, const Workspace* source,
                Tensors& made);
  void run_regrouped(std::size_t first, const BatchRun& batch, Tensors& tensors);
  void run_step(std::size_t step, const BatchRun& batch, Tensors& tensors);
  void run_group(const Place& place, const BatchRun& batch, const Rows& rows, Tensors& tensors,
                 std::vector<RoutedTensor>& made);
  void done_with(std::unique_ptr<BoundCall> call);

  std::vector<std::size_t> made_before(std::size_t first, bool deciding) const;
  std::size_t row_bytes(std::size_t tensor, const std::int64_t* options) const;
  Tensor view(std::size_t tensor, void* data, std::size_t count, const std::int64_t* options) const;

  const Manifest& manifest_;
  Memory& memory_;
  const bool on_host_;
  const std::size_t decisions_;  // T
  EngineCache engines_;
  const std::vector<Place> places_;
  Workspaces workspaces_;
  BufferPool pool_;
  std::size_t input_, output_, penalty_, state_;  // tensors of the plan
  std::vector<std::ptrdiff_t> last_uses_;         // by tensor; of the outputs: all steps
  std::size_t large_until_ = 0;                   // the step from which on all tensors of a sample are small
  std::size_t part_ = 1;                          // samples of a part
  std::size_t image_bytes_ = 0;                   // of one sample
  std::size_t copied_bytes_ = 0;                  // batches of images of fewer bytes are copied
  const Trace trace_;
  std::mutex turn_;
  std::vector<std::unique_ptr<BoundCall>> in_flight_;  // not kept otherwise, and perhaps still running on the device
};

}  // namespace rnp
