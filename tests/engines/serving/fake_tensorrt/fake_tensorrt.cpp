// The text of an "engine", a line each:
//   tensor NAME input|output float|half|int32|int8 linear|hwc8|chw32 N D... (-1
//   for N) scratch BYTES | weights BYTES | max_batch N | factor F | fails
//   enqueue|context
// Its float outputs hold the sum of its float inputs times the factor, element
// by element from the beginning.
#include "NvInfer.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <sstream>
#include <thread>

#include "fake_cuda.hpp"

using namespace nvinfer1;

namespace {

struct State {
  std::mutex mutex;
  std::vector<std::string> violations;
  fake_tensorrt::Counts counts{};
  ILogger* logger = nullptr;
  bool fail_runtime = false;
  std::atomic<int> inside{0};
};

State& state() {
  static State& all = *std::make_unique<State>().release();
  return all;
}

void violation(const std::string& what) {
  const std::lock_guard lock(state().mutex);
  state().violations.push_back(what);
}

void say(const char* words) {
  state().logger->log(ILogger::Severity::kINFO, "all is well");
  state().logger->log(ILogger::Severity::kERROR, words);
}

// Around every call: one thread at a time, in the device's context.
struct Inside {
  explicit Inside(const char* call) {
    if (++state().inside > 1) {
      violation(std::string(call) + " beside another thread's call");
    }
    if (!fake_cuda::is_current()) {
      violation(std::string(call) + " without the context");
    }
  }
  ~Inside() { --state().inside; }
};

void count(std::size_t fake_tensorrt::Counts::*which, std::size_t by) {
  const std::lock_guard lock(state().mutex);
  state().counts.*which += by;
}

constexpr std::size_t kOneLess = ~std::size_t{0};

std::int64_t byte_size(DataType dtype) {
  return dtype == DataType::kFLOAT || dtype == DataType::kINT32 ? 4 : dtype == DataType::kINT64 ? 8 : 2;
}

std::int64_t elements(const FakeTensor& tensor, std::int64_t batch) {
  std::int64_t count = batch;
  for (std::int32_t i = 1; i < tensor.dims.nbDims; ++i) {
    const bool eights = tensor.format == TensorFormat::kHWC8 && i == 1;
    count *= eights ? (tensor.dims.d[i] + 7) / 8 * 8 : tensor.dims.d[i];
  }
  return count;
}

FakeTensor tensor_from(std::istringstream& words) {
  static const std::map<std::string, DataType> kTypes{
      {"float", DataType::kFLOAT}, {"half", DataType::kHALF}, {"int32", DataType::kINT32}, {"int8", DataType::kINT8}};
  static const std::map<std::string, TensorFormat> kFormats{
      {"linear", TensorFormat::kLINEAR}, {"hwc8", TensorFormat::kHWC8}, {"chw32", TensorFormat::kCHW32}};
  FakeTensor tensor{};
  std::string mode, dtype, format;
  words >> tensor.name >> mode >> dtype >> format;
  tensor.mode = mode == "input" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  tensor.dtype = kTypes.at(dtype);
  tensor.format = kFormats.at(format);
  for (std::int64_t size = 0; words >> size;) {
    tensor.dims.d[tensor.dims.nbDims++] = size;
  }
  return tensor;
}

}  // namespace

namespace fake_tensorrt {

std::vector<std::string> violations() {
  const std::lock_guard lock(state().mutex);
  return state().violations;
}

Counts counts() {
  const std::lock_guard lock(state().mutex);
  return state().counts;
}

void reset() {
  const std::lock_guard lock(state().mutex);
  state().violations.clear();
  state().counts = {};
  state().fail_runtime = false;
}

void fail_runtime() { state().fail_runtime = true; }

}  // namespace fake_tensorrt

extern "C" {
std::int32_t getInferLibMajorVersion() noexcept { return 10; }
std::int32_t getInferLibMinorVersion() noexcept { return 3; }
std::int32_t getInferLibPatchVersion() noexcept { return 0; }
std::int32_t getInferLibBuildVersion() noexcept { return 26; }
}

namespace nvinfer1 {

const FakeTensor* FakeEngine::find(const char* name) const {
  for (const FakeTensor& tensor : tensors) {
    if (tensor.name == name) {
      return &tensor;
    }
  }
  violation(std::string("no tensor ") + name);
  return nullptr;
}

IExecutionContext::IExecutionContext(std::shared_ptr<const FakeEngine> engine) : engine_(std::move(engine)) {
  count(&fake_tensorrt::Counts::contexts, 1);
}

IExecutionContext::~IExecutionContext() {
  const Inside inside("~IExecutionContext");
  if (engine_.use_count() > 2) {  // more than this and the engine: what is in the stream
    violation("a context is destroyed while its work is in the stream");
  }
  count(&fake_tensorrt::Counts::contexts, kOneLess);
}

void IExecutionContext::setDeviceMemoryV2(void* memory, std::int64_t bytes) noexcept {
  const Inside inside("setDeviceMemoryV2");
  count(&fake_tensorrt::Counts::scratches_set, 1);
  scratch_ = memory;
  scratch_bytes_ = bytes;
}

bool IExecutionContext::setInputShape(const char* name, const Dims& dims) noexcept {
  const Inside inside("setInputShape");
  const FakeTensor* tensor = engine_->find(name);
  bool fits = tensor->mode == TensorIOMode::kINPUT && dims.nbDims == tensor->dims.nbDims && dims.d[0] >= 1 &&
              dims.d[0] <= engine_->max_batch;
  for (std::int32_t i = 1; fits && i < dims.nbDims; ++i) {
    fits = dims.d[i] == tensor->dims.d[i];
  }
  if (!fits) {
    say("the shape is outside of the optimization profile");
    return false;
  }
  batch_ = dims.d[0];
  return true;
}

bool IExecutionContext::setTensorAddress(const char* name, void* data) noexcept {
  const Inside inside("setTensorAddress");
  count(&fake_tensorrt::Counts::addresses_set, 1);
  if (reinterpret_cast<std::uintptr_t>(data) % 256 != 0) {
    violation("an address is not aligned");
  }
  addresses_[engine_->find(name)->name] = data;
  return true;
}

bool IExecutionContext::enqueueV3(cudaStream_t stream) noexcept {
  const Inside inside("enqueueV3");
  std::this_thread::sleep_for(std::chrono::microseconds(20));  // so that another thread would be met here
  if (engine_->fails.count("enqueue") > 0) {
    say("the kernels are tired");
    return false;
  }
  if (addresses_.size() != engine_->tensors.size() || scratch_bytes_ < engine_->scratch_bytes) {
    violation("enqueueV3 without all addresses or enough scratch");
    return false;
  }
  const auto work = [engine = engine_, addresses = addresses_, batch = batch_, scratch = scratch_] {
    std::vector<float> sum;
    bool reachable =
        engine->scratch_bytes == 0 || fake_cuda::is_allocated(scratch, static_cast<std::size_t>(engine->scratch_bytes));
    for (const FakeTensor& tensor : engine->tensors) {
      const auto bytes = static_cast<std::size_t>(elements(tensor, batch) * byte_size(tensor.dtype));
      reachable = reachable && fake_cuda::is_allocated(addresses.at(tensor.name), bytes);
    }
    if (!reachable) {
      violation("a kernel reaches outside of its memory");
      return;
    }
    std::memset(scratch, 0xEE, static_cast<std::size_t>(engine->scratch_bytes));
    for (const FakeTensor& tensor : engine->tensors) {
      if (tensor.mode == TensorIOMode::kINPUT && tensor.dtype == DataType::kFLOAT) {
        const auto* values = static_cast<const float*>(addresses.at(tensor.name));
        const auto size = static_cast<std::size_t>(elements(tensor, batch));
        sum.resize(std::max(sum.size(), size));
        for (std::size_t i = 0; i < size; ++i) {
          sum[i] += values[i];
        }
      }
    }
    for (const FakeTensor& tensor : engine->tensors) {
      if (tensor.mode != TensorIOMode::kOUTPUT) {
        continue;
      }
      void* data = addresses.at(tensor.name);
      const auto size = static_cast<std::size_t>(elements(tensor, batch));
      std::memset(data, 0x5A, size * static_cast<std::size_t>(byte_size(tensor.dtype)));
      for (std::size_t i = 0; tensor.dtype == DataType::kFLOAT && i < size; ++i) {
        static_cast<float*>(data)[i] = i < sum.size() ? engine->factor * sum[i] : 0;
      }
    }
  };
  return fake_cuda::launch(stream, work) == 0;
}

ICudaEngine::ICudaEngine(FakeEngine engine) : engine_(std::make_shared<const FakeEngine>(std::move(engine))) {
  count(&fake_tensorrt::Counts::engines, 1);
}

ICudaEngine::~ICudaEngine() {
  const Inside inside("~ICudaEngine");
  if (engine_.use_count() > 1) {
    violation("an engine is destroyed before its contexts");
  }
  count(&fake_tensorrt::Counts::engines, kOneLess);
}

std::int32_t ICudaEngine::getNbIOTensors() const noexcept { return static_cast<std::int32_t>(engine_->tensors.size()); }
const char* ICudaEngine::getIOTensorName(std::int32_t index) const noexcept {
  return engine_->tensors[static_cast<std::size_t>(index)].name.c_str();
}
Dims ICudaEngine::getTensorShape(const char* name) const noexcept { return engine_->find(name)->dims; }
DataType ICudaEngine::getTensorDataType(const char* name) const noexcept { return engine_->find(name)->dtype; }
TensorIOMode ICudaEngine::getTensorIOMode(const char* name) const noexcept { return engine_->find(name)->mode; }
TensorFormat ICudaEngine::getTensorFormat(const char* name) const noexcept { return engine_->find(name)->format; }
std::int64_t ICudaEngine::getDeviceMemorySizeV2() const noexcept { return engine_->scratch_bytes; }

IExecutionContext* ICudaEngine::createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept {
  const Inside inside("createExecutionContext");
  if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) {
    violation("a context with memory of its own");
  }
  if (engine_->fails.count("context") > 0) {
    say("no context today");
    return nullptr;
  }
  return std::make_unique<IExecutionContext>(engine_).release();
}

IRuntime::IRuntime() { count(&fake_tensorrt::Counts::runtimes, 1); }

IRuntime::~IRuntime() {
  const Inside inside("~IRuntime");
  if (fake_tensorrt::counts().engines > 0) {
    violation("a runtime is destroyed before its engines");
  }
  count(&fake_tensorrt::Counts::runtimes, kOneLess);
}

ICudaEngine* IRuntime::deserializeCudaEngine(const void* plan, std::size_t bytes) noexcept {
  const Inside inside("deserializeCudaEngine");
  std::istringstream lines(std::string(static_cast<const char*>(plan), bytes));
  FakeEngine engine;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string kind, value;
    words >> kind;
    if (kind == "tensor") {
      engine.tensors.push_back(tensor_from(words));
      continue;
    }
    words >> value;
    if (kind == "scratch") {
      engine.scratch_bytes = std::stoll(value);
    } else if (kind == "max_batch") {
      engine.max_batch = std::stoll(value);
    } else if (kind == "factor") {
      engine.factor = std::stof(value);
    } else if (kind == "fails") {
      engine.fails[value] = true;
    } else if (kind == "weights") {
      if (fake_cuda::counts().used_bytes + std::stoull(value) > (std::size_t{1} << 20)) {
        say("out of memory for weights");
        return nullptr;
      }
    } else {
      say("magicTag does not match");
      return nullptr;
    }
  }
  return std::make_unique<ICudaEngine>(std::move(engine)).release();
}

IRuntime* createInferRuntime(ILogger& logger) noexcept {
  const Inside inside("createInferRuntime");
  if (state().logger == nullptr) {
    state().logger = &logger;  // for the whole process, as TensorRT does
  }
  if (state().fail_runtime) {
    say("no runtime today");
    return nullptr;
  }
  return std::make_unique<IRuntime>().release();
}

}  // namespace nvinfer1
