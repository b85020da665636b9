// Compiled against TensorRT's headers and tested on stand-ins for it and for the driver: no GPU has run it yet.
// Engines are enqueued one by one. The Python controller records each branch as a CUDA graph; what that spares on the
// host has not been measured from C++, where a call costs less, so it is left out here.
#include "trt_backend.hpp"

#include <NvInfer.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "rnp/error.hpp"

#if defined(TRT_MAJOR_RTX)
#define RNP_TENSORRT_FLAVOR "rtx"
#elif NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR >= 1003
#define RNP_TENSORRT_FLAVOR "tensorrt"
#else
#error "TensorRT 10.3 or newer is needed"
#endif

namespace rnp {
namespace {

constexpr std::size_t kAlignment = 256;  // of every tensor, as setTensorAddress wants it
constexpr std::size_t kKeptMessages = 4;
constexpr std::int64_t kEight = 8;

std::string library_name() {
  return std::string(tensorrt_flavor() == "rtx" ? "TensorRT-RTX " : "TensorRT ") + tensorrt_version();
}

// Keeps the last errors, for calls that return nothing but null or false.
class LastWords final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) {
      return;
    }
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      messages_.emplace_back(message);
      if (messages_.size() > kKeptMessages) {
        messages_.pop_front();
      }
    } catch (...) {  // no memory for words: the error they belong to is reported without
    }
  }

  // Forgets them: the next failure has words of its own.
  std::string take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string said;
    for (const std::string& message : messages_) {
      said += (said.empty() ? "" : " ") + message;
    }
    messages_.clear();
    return said.empty() ? "it does not say why" : said;
  }

 private:
  std::mutex mutex_;
  std::deque<std::string> messages_;
};

// TensorRT keeps the first logger that it is given for the whole process, past its other objects: never destroyed.
LastWords& last_words() {
  static LastWords& words = *std::make_unique<LastWords>().release();
  return words;
}

// What the engines of a backend share: they run one after another in one stream.
struct Shared {
  explicit Shared(std::shared_ptr<CudaMemory> device_memory) : memory(std::move(device_memory)) {
    const CurrentContext current(memory->context());
    runtime.reset(nvinfer1::createInferRuntime(last_words()));
    if (!runtime) {
      throw Error(ErrorCode::kEngine, library_name() + " cannot make a runtime on this device: " + last_words().take());
    }
  }

  ~Shared() {
    memory->release(scratch);
    try {
      const CurrentContext current(memory->context());
      runtime.reset();
    } catch (const Error&) {  // the device is lost
    }
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  // Activation memory of all engines; contexts take it anew before they run. An earlier, smaller buffer may still be
  // in use by the stream, in whose order it is used again.
  void grow_scratch(std::size_t bytes) {
    if (bytes > scratch_bytes) {
      void* larger = memory->allocate(bytes);
      memory->release(std::exchange(scratch, larger));
      scratch_bytes = bytes;
    }
  }

  // TensorRT makes nothing where device memory is short, and then is asked again with more of it free.
  template <class Make>
  auto made(Make make) {
    auto* result = make();
    if (result == nullptr) {
      memory->give_back();
      result = make();
    }
    return std::unique_ptr<std::remove_pointer_t<decltype(result)>>(result);
  }

  std::mutex mutex;  // TensorRT's contexts are for one thread at a time
  std::shared_ptr<CudaMemory> memory;
  std::unique_ptr<nvinfer1::IRuntime> runtime;
  void* scratch = nullptr;
  std::size_t scratch_bytes = 0;
};

struct EngineTensor {
  std::string name;
  nvinfer1::Dims dims{};  // as the network has it, -1 for N
  DType dtype = DType::kFloat32;
  bool is_input = false;
  bool eights = false;  // HWC8: channels last in memory, rounded up to eights

  std::vector<std::int64_t> in_memory(std::int64_t batch) const {
    std::vector<std::int64_t> shape(dims.d, dims.d + dims.nbDims);
    shape[0] = batch;
    if (eights) {
      shape = {batch, shape[2], shape[3], (shape[1] + kEight - 1) / kEight * kEight};
    }
    return shape;
  }
};

DType dtype_of(nvinfer1::DataType theirs, const std::string& where) {
  static constexpr std::array<std::pair<nvinfer1::DataType, DType>, 5> kTypes{{
      {nvinfer1::DataType::kFLOAT, DType::kFloat32},
      {nvinfer1::DataType::kHALF, DType::kFloat16},
      {nvinfer1::DataType::kBF16, DType::kBfloat16},
      {nvinfer1::DataType::kINT32, DType::kInt32},
      {nvinfer1::DataType::kINT64, DType::kInt64},
  }};
  const auto* found =
      std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& type) { return type.first == theirs; });
  if (found == kTypes.end()) {
    throw Error(ErrorCode::kEngine, where + " has a type that bundles do not have; build the engine set again");
  }
  return found->second;
}

EngineTensor tensor_of(const nvinfer1::ICudaEngine& engine, const char* name, const std::string& engine_where) {
  const std::string where = engine_where + ": tensor '" + name + "'";
  const nvinfer1::TensorFormat format = engine.getTensorFormat(name);
  EngineTensor tensor;
  tensor.name = name;
  tensor.dims = engine.getTensorShape(name);
  tensor.dtype = dtype_of(engine.getTensorDataType(name), where);
  tensor.is_input = engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
  tensor.eights = format == nvinfer1::TensorFormat::kHWC8;
  const bool laid_out = format == nvinfer1::TensorFormat::kLINEAR || (tensor.eights && tensor.dims.nbDims == 4);
  if (!laid_out || tensor.dims.nbDims < 1) {
    throw Error(ErrorCode::kEngine, where + " is laid out as no plan has it; build the engine set again");
  }
  const bool sized = std::all_of(tensor.dims.d + 1, tensor.dims.d + tensor.dims.nbDims, [](auto d) { return d >= 1; });
  if (!sized) throw Error(ErrorCode::kEngine, where + " has a size that is not known; build the engine set again");
  return tensor;
}

class TrtEngine;

class TrtCall final : public BoundCall {
 public:
  TrtCall(std::shared_ptr<TrtEngine> engine, std::shared_ptr<Shared> shared, std::int64_t batch, std::size_t id)
      : engine_(std::move(engine)), shared_(std::move(shared)), batch_(batch), id_(id) {}
  ~TrtCall() override {
    for (void* spare : spares_) {
      shared_->memory->release(spare);
    }
  }
  void run() override;

 private:
  friend class TrtEngine;
  std::shared_ptr<TrtEngine> engine_;
  std::shared_ptr<Shared> shared_;
  std::int64_t batch_;
  std::size_t id_;                // among the calls of its engine, from 1
  std::vector<void*> addresses_;  // by tensor of the engine
  std::vector<void*> spares_;     // for outputs that are not wanted
};

class TrtEngine final : public Engine, public std::enable_shared_from_this<TrtEngine> {
 public:
  TrtEngine(std::shared_ptr<Shared> shared, std::string where, const std::string& plan)
      : shared_(std::move(shared)), where_(std::move(where)) {
    engine_ = shared_->made([&] { return shared_->runtime->deserializeCudaEngine(plan.data(), plan.size()); });
    if (!engine_) {
      throw failed("cannot load it", "; out of GPU memory: give a memory budget; else build the engine set again");
    }
    for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      tensors_.push_back(tensor_of(*engine_, engine_->getIOTensorName(i), where_));
    }
    const auto ours = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
    context_ = shared_->made([&] { return engine_->createExecutionContext(ours); });
    if (!context_) {
      throw failed("cannot make an execution context",
                   "; out of GPU memory: give a memory budget, or build the "
                   "engine set with a smaller --max-batch");
    }
    shared_->grow_scratch(static_cast<std::size_t>(std::max<std::int64_t>(1, engine_->getDeviceMemorySizeV2())));
  }

  ~TrtEngine() override {
    try {
      const std::lock_guard<std::mutex> lock(shared_->mutex);
      const CurrentContext current(shared_->memory->context());
      shared_->memory->synchronise();  // its weights may be in use
      context_.reset();
      engine_.reset();
    } catch (const Error&) {  // the device is lost
    }
  }
  TrtEngine(const TrtEngine&) = delete;
  TrtEngine& operator=(const TrtEngine&) = delete;

  std::unique_ptr<BoundCall> bind(const NamedTensors& inputs, const NamedTensors& outputs) override {
    const std::int64_t batch = inputs.empty() || inputs[0].second.shape.empty() ? 0 : inputs[0].second.shape[0];
    auto call = std::make_unique<TrtCall>(shared_from_this(), shared_, batch, ++calls_);
    std::size_t given = 0;
    call->addresses_.reserve(tensors_.size());
    call->spares_.reserve(tensors_.size());
    for (const EngineTensor& tensor : tensors_) {
      const NamedTensors& among = tensor.is_input ? inputs : outputs;
      const auto found =
          std::find_if(among.begin(), among.end(), [&](const auto& named) { return named.first == tensor.name; });
      if (found != among.end()) {
        check(tensor, found->second, batch);
        call->addresses_.push_back(found->second.data);
        ++given;
      } else if (tensor.is_input) {
        throw Error(ErrorCode::kEngine, where_ + ": its input '" + tensor.name + "' is not given");
      } else {
        const Tensor spare{nullptr, tensor.dtype, tensor.in_memory(batch)};
        call->spares_.push_back(shared_->memory->allocate(spare.bytes()));
        call->addresses_.push_back(call->spares_.back());
      }
    }
    if (given != inputs.size() + outputs.size()) {
      throw Error(ErrorCode::kEngine, where_ + ": it is given a tensor that it does not have, or has given already");
    }
    return call;
  }

  void run(const TrtCall& call) {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    const CurrentContext current(shared_->memory->context());
    if (std::exchange(call_, 0) != call.id_) {
      point_at(call);
    }
    if (scratch_ != shared_->scratch) {
      context_->setDeviceMemoryV2(shared_->scratch, static_cast<std::int64_t>(shared_->scratch_bytes));
      scratch_ = shared_->scratch;
    }
    if (!context_->enqueueV3(static_cast<cudaStream_t>(shared_->memory->stream()))) {
      throw failed("failed to run it", "");
    }
    call_ = call.id_;
  }

 private:
  void point_at(const TrtCall& call) {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const EngineTensor& tensor = tensors_[i];
      nvinfer1::Dims dims = tensor.dims;
      dims.d[0] = call.batch_;
      const bool fits = !tensor.is_input || context_->setInputShape(tensor.name.c_str(), dims);
      if (!fits || !context_->setTensorAddress(tensor.name.c_str(), call.addresses_[i])) {
        throw failed("does not take '" + tensor.name + "' in a batch of " + std::to_string(call.batch_), "");
      }
    }
  }

  void check(const EngineTensor& tensor, const Tensor& given, std::int64_t batch) const {
    const std::string name = where_ + ": the tensor given as '" + tensor.name + "'";
    if (given.dtype != tensor.dtype || batch < 1 || given.shape != tensor.in_memory(batch)) {
      throw Error(ErrorCode::kEngine, name + " has not the type or shape that the engine has");
    }
    if (given.data == nullptr || reinterpret_cast<std::uintptr_t>(given.data) % kAlignment != 0) {
      throw Error(ErrorCode::kEngine, name + " has to lie on GPU memory that is aligned to 256 bytes");
    }
  }

  Error failed(const std::string& what, const std::string& remedy) const {
    return {ErrorCode::kEngine, where_ + ": " + library_name() + " " + what + ": " + last_words().take() + remedy};
  }

  std::shared_ptr<Shared> shared_;
  const std::string where_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::vector<EngineTensor> tensors_;
  std::atomic<std::size_t> calls_{0};
  std::size_t call_ = 0;           // whose shapes and addresses the context has; 0: nobody's
  const void* scratch_ = nullptr;  // that the context has
};

void TrtCall::run() { engine_->run(*this); }

class TrtBackend final : public Backend {
 public:
  TrtBackend(std::shared_ptr<CudaMemory> memory, TrtEngineSet set)
      : set_(std::move(set)), shared_(std::make_shared<Shared>(std::move(memory))) {}

  std::shared_ptr<Engine> open(const std::string& path) override {
    const std::string plan = set_.read_verified(path);
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    const CurrentContext current(shared_->memory->context());
    return std::make_shared<TrtEngine>(shared_, (set_.directory / path).string(), plan);
  }

  Memory& memory() noexcept override { return *shared_->memory; }
  std::size_t max_batch() const noexcept override { return set_.max_batch; }
  std::string name() const override { return "tensorrt"; }
  std::string device() const override { return "cuda"; }

 private:
  TrtEngineSet set_;
  std::shared_ptr<Shared> shared_;
};

}  // namespace

bool tensorrt_built() noexcept { return true; }

std::string tensorrt_version() {
  return std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) + "." +
         std::to_string(getInferLibPatchVersion()) + "." + std::to_string(getInferLibBuildVersion());
}

std::string tensorrt_flavor() { return RNP_TENSORRT_FLAVOR; }

std::shared_ptr<Backend> tensorrt_backend_in(std::shared_ptr<CudaMemory> memory, TrtEngineSet set) {
  return std::make_shared<TrtBackend>(std::move(memory), std::move(set));
}

std::shared_ptr<Backend> tensorrt_backend(const Package& package, const ControllerOptions& options) {
  const EngineSetManifest* manifest = package.engine_set();
  if (manifest == nullptr) {
    throw Error(ErrorCode::kRuntime, package.directory().string() +
                                         ": TensorRT runs engine sets, and this is a bundle; build one of it with "
                                         "rnp-build");
  }
  // The driver is looked at first: without one TensorRT may take the process with it.
  auto memory =
      std::make_shared<CudaMemory>(std::make_shared<const CudaDriver>(), options.cuda_stream, options.allocator);
  return tensorrt_backend_in(std::move(memory),
                             {package.directory(), static_cast<std::size_t>(manifest->max_batch.value_or(0)),
                              [package](const std::string& path) { return package.read_verified(path); }});
}

}  // namespace rnp
