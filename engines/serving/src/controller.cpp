#include "rnp/controller.hpp"

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>
#include <utility>

#include "plan_runner.hpp"
#include "preloading.hpp"
#include "rnp/error.hpp"
#include "run_inputs.hpp"

namespace rnp {
namespace {

std::shared_ptr<Backend> checked(std::shared_ptr<Backend> backend) {
  if (backend == nullptr) throw Error(ErrorCode::kInput, "the backend is null; pass one, or leave it out");
  return backend;
}

// Every sample takes the largest option given to any.
void round_up(std::vector<std::int64_t>& options, std::size_t decisions) {
  for (std::size_t t = 0; t < decisions; ++t) {
    std::int64_t most = 0;
    for (std::size_t i = t; i < options.size(); i += decisions) most = std::max(most, options[i]);
    for (std::size_t i = t; i < options.size(); i += decisions) options[i] = most;
  }
}

}  // namespace

struct Controller::Impl {
  Impl(Package given, std::shared_ptr<Backend> engines, ControllerOptions options)
      : package(std::move(given)),
        backend(checked(std::move(engines))),
        runner(package.plan(), package.manifest(), *backend, options.memory_budget_bytes, std::move(options.trace)) {
    if (options.preload != Preload::kNone) preload(options.preload == Preload::kCommon);
  }

  void preload(bool common_only) {
    std::vector<std::string> files;
    if (common_only) {
      files = common_files(package.plan(), package.manifest());
    } else {
      for (auto& [file, share] : files_by_use(package.plan(), package.manifest())) files.push_back(file);
    }
    runner.open(files);
  }

  Result run(const float* images, std::size_t batch, const RunOptions& options) {
    const auto start = std::chrono::steady_clock::now();
    const Manifest& manifest = package.manifest();
    const bool on_device = options.images_on_device && !backend->memory().on_host();
    check_images(images, batch, manifest, !on_device);
    const std::vector<float> prices = checked_penalties(options, batch, manifest);
    const std::size_t decisions = manifest.decisions.size();

    Result result;
    result.batch = batch;
    result.options = checked_options(options.options, batch, manifest);
    const bool deciding = options.options == nullptr, rounding = options.policy == Policy::kRoundUp;
    if (rounding && !deciding) round_up(result.options, decisions);
    result.shape.push_back(static_cast<std::int64_t>(batch));
    result.shape.insert(result.shape.end(), manifest.output.shape.begin(), manifest.output.shape.end());
    const std::size_t image = values(manifest.input), output = values(manifest.output);
    result.outputs.resize(batch * output);
    result.macs.resize(batch);
    result.approximate = rounding && batch > 1;

    const std::size_t largest = backend->max_batch() == 0 ? batch : backend->max_batch();
    const std::size_t most = options.policy == Policy::kSerial ? 1 : largest;
    for (std::size_t i = 0; i < batch; i += std::min(most, batch - i)) {
      BatchRun part;
      part.images = images + i * image;
      part.images_on_device = on_device;
      part.prices = prices.data() + i;
      part.options = result.options.data() + i * decisions;
      part.count = std::min(most, batch - i);
      part.deciding = deciding;
      part.round_up = rounding;
      part.outputs = result.outputs.data() + i * output;
      part.macs = result.macs.data() + i;
      part.first_sample = i;
      part.start = start;
      runner.run(part);
    }
    return result;
  }

  static std::size_t values(const TensorSpec& tensor) {
    return static_cast<std::size_t>(tensor.largest_bytes()) / byte_size(tensor.dtype);
  }

  const Package package;
  const std::shared_ptr<Backend> backend;
  PlanRunner runner;
};

Controller::Controller(Package package, ControllerOptions options) {
  auto backend = open_backend(package, options);
  impl_ = std::make_unique<Impl>(std::move(package), std::move(backend), std::move(options));
}

Controller::Controller(Package package, std::shared_ptr<Backend> backend, ControllerOptions options)
    : impl_(std::make_unique<Impl>(std::move(package), std::move(backend), std::move(options))) {}

Controller::~Controller() = default;

Result Controller::run(const float* images, std::size_t batch, const RunOptions& options) {
  try {
    return impl_->run(images, batch, options);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kMemory,
                "no memory for a batch of " + std::to_string(batch) + "; pass smaller batches, or run fewer at once");
  } catch (const std::length_error&) {
    throw Error(ErrorCode::kInput, "a batch of " + std::to_string(batch) + " is more than can be addressed");
  }
}

void Controller::preload(bool common_only) { impl_->preload(common_only); }
const Package& Controller::package() const noexcept { return impl_->package; }
std::string Controller::backend() const { return impl_->backend->name(); }
std::string Controller::device() const { return impl_->backend->device(); }
MemoryReport Controller::memory() const { return impl_->runner.report(); }

}  // namespace rnp
