// The host-side controller: asks the agent, picks the branch, per image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rnp/engine.hpp"
#include "rnp/package.hpp"

namespace rnp {

enum class Preload { kNone, kCommon, kAll };

// For samples that decide differently; as in Python. Regroup: those of the same branch are computed together.
// Serial: one after another. Round-up: at every decision all take the largest option any of them chose; each part is
// rounded by itself where the batch exceeds max_batch.
enum class Policy { kRegroup, kSerial, kRoundUp };

// Takes the place of the library's own allocation of tensors, on the device that is run on: aligned to 64 bytes, on a
// GPU to 256. Called from the threads that call the controller; must outlive it.
struct Allocator {
  void* (*allocate)(void* context, std::size_t bytes) = nullptr;  // null where memory is short
  void (*release)(void* context, void* data) = nullptr;
  void* context = nullptr;
};

// One decision of the agent for samples that go on together; pointers are valid during the call.
struct DecisionEvent {
  std::size_t decision;         // t
  const std::string& conv;      // the module path of its convolution
  const std::int64_t* samples;  // `count` rows of the batch
  const std::int64_t* options;  // `count`, each in 1..k, as taken
  std::size_t count;
  double since_start_us;  // of this run
};

struct ControllerOptions {
  Device device = Device::kAuto;
  // Threads that compute on the CPU; 0: one per core. All controllers of a process share one pool: the first that
  // wants more than one thread sets its size. A controller of several threads that is opened after one of one thread
  // gives each engine a pool of its own: open the former first.
  int threads = 0;
  Preload preload = Preload::kNone;
  // Bytes of weights that open engines may hold together, the least recently used are let go; 0: no limit.
  std::uint64_t memory_budget_bytes = 0;
  // A cudaStream_t of the caller's in which all work is done, which must outlive the controller; null: one of the
  // controller's own.
  void* cuda_stream = nullptr;
  Allocator allocator{};
  // Called after each decision, in the calling thread, and so concurrently when `run` is; it must not call the
  // controller.
  std::function<void(const DecisionEvent&)> trace{};
};

struct RunOptions {
  // The price of one more group; none: the agent's own. At most one of penalty and penalties, which have no say beside
  // options; target_macs must stand alone.
  std::optional<float> penalty{};
  const float* penalties = nullptr;       // [N]
  std::optional<double> target_macs{};    // mean MACs of an image ÷ the full network's, by the calibration
  const std::int64_t* options = nullptr;  // [N, T] in 1..k: take these; the agent is not asked where it stands alone
  Policy policy = Policy::kRegroup;
  bool images_on_device = false;  // images lie on the device of the controller, written in its stream
};

// The caller's.
struct Result {
  std::size_t batch = 0;
  std::vector<std::int64_t> shape;    // of `outputs`, N first
  std::vector<float> outputs;         // in input order
  std::vector<std::int64_t> options;  // [N, T], as taken
  std::vector<std::int64_t> macs;     // [N], of the backbone branches taken
  bool approximate = false;           // round-up may have let samples take more than was decided
};

struct MemoryReport {
  std::size_t engines = 0, engines_in_all = 0;
  std::uint64_t weight_bytes = 0, workspace_bytes = 0, evictions = 0;
};

// Runs a package. `run` may be called from many threads; engines are opened when first needed. Destroyed once no run
// is under way.
class Controller {
 public:
  // Throws Error: what Package::check calls an error, or an argument that does not fit.
  explicit Controller(Package package, ControllerOptions options = {});
  // Over engines of the caller's: device, threads, cuda_stream and allocator are not looked at.
  Controller(Package package, std::shared_ptr<Backend> backend, ControllerOptions options = {});
  ~Controller();
  Controller(const Controller&) = delete;
  Controller& operator=(const Controller&) = delete;

  // `images` float32 [N, C, H, W], finite, N >= 1; read, not kept.
  // Throws Error: kInput, kEngine, kDevice, kMemory, and what opening an engine throws.
  Result run(const float* images, std::size_t batch, const RunOptions& options = {});

  // Opens engines now, the most used first, as far as the budget goes; `common_only`: those that at least 1 % of the
  // calibration images took. Throws Error(kInput) where only those are wanted and there is no calibration.
  void preload(bool common_only = false);

  const Package& package() const noexcept;
  std::string backend() const;
  std::string device() const;
  MemoryReport memory() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The backend a package is run by here: throws Error with the first diagnostic of Package::check that is an error.
std::shared_ptr<Backend> open_backend(const Package& package, const ControllerOptions& options);

}  // namespace rnp
