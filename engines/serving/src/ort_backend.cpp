// Bundles, and engine sets of "onnxruntime", by ONNX Runtime: on the CPU, or on a CUDA GPU with nothing left to the
// CPU.
#include <onnxruntime_cxx_api.h>
#include <onnxruntime_run_options_config_keys.h>
#include <onnxruntime_session_options_config_keys.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <tuple>

#include "backends.hpp"
#include "ort_environment.hpp"

namespace rnp {
namespace {

constexpr const char* kCudaProvider = "CUDAExecutionProvider";

struct TensorType {
  ONNXTensorElementDataType element;
  std::size_t rank;  // 0: not known
};
using TensorTypes = std::map<std::string, TensorType>;

// Types of tensors: ours, ONNX's, and their name.
constexpr std::array<std::tuple<DType, ONNXTensorElementDataType, const char*>, 5> kTypes{{
    {DType::kFloat32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "float32"},
    {DType::kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, "float16"},
    {DType::kBfloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, "bfloat16"},
    {DType::kInt32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, "int32"},
    {DType::kInt64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, "int64"},
}};

ONNXTensorElementDataType element_type(DType wanted) {
  for (const auto& [dtype, element, name] : kTypes) {
    if (dtype == wanted) return element;
  }
  throw Error(ErrorCode::kInternal, "a tensor of an unknown type");
}

std::string name_of_element(ONNXTensorElementDataType wanted) {
  for (const auto& [dtype, element, name] : kTypes) {
    if (element == wanted) return name;
  }
  return "ONNX's type " + std::to_string(wanted);
}

// What a session says of its inputs or outputs, by name.
template <typename NameOf, typename TypeOf>
TensorTypes tensor_types(std::size_t count, const NameOf& name_of, const TypeOf& type_of) {
  Ort::AllocatorWithDefaultOptions allocator;
  TensorTypes types;
  for (std::size_t i = 0; i < count; ++i) {
    const Ort::TypeInfo type = type_of(i);
    const auto tensor = type.GetTensorTypeAndShapeInfo();
    types[name_of(i, allocator).get()] = {tensor.GetElementType(), tensor.GetDimensionsCount()};
  }
  return types;
}

// What all engines of a backend have in common.
struct Common {
  std::shared_ptr<OrtEnvironment> environment;
  std::shared_ptr<Memory> memory;
  Ort::MemoryInfo memory_info{nullptr};
  Ort::RunOptions run_options{nullptr};
};

// A session, and what has to live as long: the environment goes last.
struct OrtPiece {
  std::shared_ptr<const Common> common;
  std::string where;  // names it in errors
  Ort::Session session{nullptr};
};

class OrtCall final : public BoundCall {
 public:
  OrtCall(std::shared_ptr<OrtPiece> piece, Ort::IoBinding binding)
      : piece_(std::move(piece)), binding_(std::move(binding)) {}

  void run() override {
    try {
      piece_->session.Run(piece_->common->run_options, binding_);
    } catch (const Ort::Exception& error) {
      throw Error(ErrorCode::kEngine, piece_->where + ": ONNX Runtime failed: " + error.what());
    }
  }

 private:
  std::shared_ptr<OrtPiece> piece_;
  Ort::IoBinding binding_;
};

class OrtEngine final : public Engine {
 public:
  explicit OrtEngine(std::shared_ptr<OrtPiece> piece) : piece_(std::move(piece)) {
    const Ort::Session& session = piece_->session;
    inputs_ = tensor_types(
        session.GetInputCount(),
        [&](std::size_t i, OrtAllocator* allocator) { return session.GetInputNameAllocated(i, allocator); },
        [&](std::size_t i) { return session.GetInputTypeInfo(i); });
    outputs_ = tensor_types(
        session.GetOutputCount(),
        [&](std::size_t i, OrtAllocator* allocator) { return session.GetOutputNameAllocated(i, allocator); },
        [&](std::size_t i) { return session.GetOutputTypeInfo(i); });
  }

  std::unique_ptr<BoundCall> bind(const NamedTensors& inputs, const NamedTensors& outputs) override {
    for (const auto& [name, type] : inputs_) {
      const bool given =
          std::any_of(inputs.begin(), inputs.end(), [&](const auto& input) { return input.first == name; });
      if (!given) refuse("its input \"" + name + "\" is not given");
    }
    try {
      Ort::IoBinding binding(piece_->session);
      for (const auto& [name, tensor] : inputs) binding.BindInput(name.c_str(), value_of(name, tensor, inputs_));
      for (const auto& [name, tensor] : outputs) binding.BindOutput(name.c_str(), value_of(name, tensor, outputs_));
      return std::make_unique<OrtCall>(piece_, std::move(binding));
    } catch (const Ort::Exception& error) {
      refuse(error.what());
    }
  }

 private:
  // A tensor as a value of ONNX Runtime's, on the same memory; it looks at names and types itself no sooner than it
  // runs.
  Ort::Value value_of(const std::string& name, const Tensor& tensor, const TensorTypes& types) const {
    const auto found = types.find(name);
    if (found == types.end()) refuse("it has no tensor \"" + name + "\" there");
    const auto [element, rank] = found->second;
    if (element != element_type(tensor.dtype)) {
      refuse("\"" + name + "\" is given " + name_of_element(element_type(tensor.dtype)) + "; it takes " +
             name_of_element(element));
    }
    if (rank != 0 && rank != tensor.shape.size()) {
      refuse("\"" + name + "\" is given " + std::to_string(tensor.shape.size()) + " axes; it has " +
             std::to_string(rank));
    }
    if (tensor.data == nullptr) refuse("\"" + name + "\" is given no memory");
    return Ort::Value::CreateTensor(piece_->common->memory_info, tensor.data, tensor.bytes(), tensor.shape.data(),
                                    tensor.shape.size(), element);
  }

  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(ErrorCode::kEngine, piece_->where + ": ONNX Runtime cannot bind it: " + why);
  }

  std::shared_ptr<OrtPiece> piece_;
  TensorTypes inputs_, outputs_;
};

class OrtBackend final : public Backend {
 public:
  OrtBackend(Package package, bool on_cuda, const ControllerOptions& options)
      : package_(std::move(package)), on_cuda_(on_cuda), threads_(on_cuda ? 1 : options.threads) {
    auto common = std::make_shared<Common>();
    common->environment = OrtEnvironment::of_process(threads_);
    if (on_cuda) {
      common->memory = cuda_memory(options.cuda_stream, options.allocator);
      common->memory_info = Ort::MemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault);
      common->run_options = Ort::RunOptions();
      // What follows is in the same stream: nobody has to wait for it.
      common->run_options.AddConfigEntry(kOrtRunOptionsConfigDisableSynchronizeExecutionProviders, "1");
    } else {
      common->memory = host_memory(options.allocator);
      common->memory_info = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    }
    common_ = std::move(common);
  }

  std::shared_ptr<Engine> open(const std::string& path) override {
    const std::string graph = package_.read_verified(path);
    auto piece = std::make_shared<OrtPiece>();
    piece->common = common_;
    piece->where = (package_.directory() / path).string();
    try {
      piece->session = Ort::Session(common_->environment->get(), graph.data(), graph.size(), session_options());
      package_.check_unchanged();  // after its weights were read or mapped
      return std::make_shared<OrtEngine>(std::move(piece));
    } catch (const Ort::Exception& error) {
      throw Error(ErrorCode::kEngine, piece->where + ": ONNX Runtime " + onnxruntime_version() + " cannot " +
                                          (on_cuda_ ? "run all of it on the GPU: " : "load it: ") + error.what());
    }
  }

  Memory& memory() noexcept override { return *common_->memory; }
  std::size_t max_batch() const noexcept override {
    const EngineSetManifest* engines = package_.engine_set();
    return engines == nullptr ? 0 : static_cast<std::size_t>(engines->max_batch.value_or(0));
  }
  std::string name() const override { return "onnxruntime"; }
  std::string device() const override { return on_cuda_ ? "cuda" : "cpu"; }

 private:
  Ort::SessionOptions session_options() const {
    Ort::SessionOptions options = common_->environment->session_options(package_.directory(), threads_);
    if (package_.engine_set() != nullptr) {  // ONNX Runtime optimised its graphs when it was built
      options.SetGraphOptimizationLevel(ORT_DISABLE_ALL);
      // Packed copies of weights would be memory of its own for each of many engines.
      options.AddConfigEntry(kOrtSessionOptionsConfigDisablePrepacking, "1");
    }
    if (on_cuda_) add_cuda(options);
    return options;
  }

  void add_cuda(Ort::SessionOptions& options) const {
    options.AddConfigEntry(kOrtSessionOptionsDisableCPUEPFallback, "1");
    OrtCUDAProviderOptionsV2* made = nullptr;
    Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&made));
    const auto release = [](OrtCUDAProviderOptionsV2* cuda) { Ort::GetApi().ReleaseCUDAProviderOptions(cuda); };
    const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(release)> cuda(made, release);
    // Many sessions and row counts: none is worth a search over all algorithms, and arenas take what is asked for.
    // TF32 would make float32 another thing than on the CPU.
    const std::array<const char*, 4> keys{"device_id", "use_tf32", "cudnn_conv_algo_search", "arena_extend_strategy"};
    const std::array<const char*, 4> values{"0", "0", "HEURISTIC", "kSameAsRequested"};
    Ort::ThrowOnError(Ort::GetApi().UpdateCUDAProviderOptions(cuda.get(), keys.data(), values.data(), keys.size()));
    Ort::ThrowOnError(Ort::GetApi().UpdateCUDAProviderOptionsWithValue(cuda.get(), "user_compute_stream",
                                                                       stream_of(*common_->memory)));
    options.AppendExecutionProvider_CUDA_V2(*cuda);
  }

  Package package_;
  bool on_cuda_;
  int threads_;
  std::shared_ptr<const Common> common_;
};

// Throws Error: what ONNX Runtime cannot do with this package here.
void check_runs(const Package& package, bool on_cuda, const ControllerOptions& options) {
  if (options.threads < 0) {
    throw Error(ErrorCode::kInput,
                "threads is " + std::to_string(options.threads) + "; pass at least 1, or 0 for one per core");
  }
  if (on_cuda && !onnxruntime_has_cuda()) {
    throw Error(ErrorCode::kRuntime, "ONNX Runtime " + onnxruntime_version() +
                                         " here is built without CUDA; link its GPU build, or ask for the CPU");
  }
  if (!on_cuda && package.manifest().precision == "bf16") {
    throw Error(ErrorCode::kEngine, package.directory().string() +
                                        " is in bf16, for which ONNX Runtime has no convolutions on the CPU; export "
                                        "with --precision fp16, or run it on a GPU");
  }
}

}  // namespace

bool onnxruntime_built() noexcept { return true; }

std::string onnxruntime_version() { return OrtGetApiBase()->GetVersionString(); }

bool onnxruntime_has_cuda() {
  if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) return false;
  try {
    const std::vector<std::string> providers = Ort::GetAvailableProviders();
    return std::find(providers.begin(), providers.end(), kCudaProvider) != providers.end();
  } catch (const Ort::Exception&) {
    return false;
  }
}

std::shared_ptr<Backend> onnxruntime_backend(const Package& package, bool on_cuda, const ControllerOptions& options) {
  check_runs(package, on_cuda, options);
  try {
    return std::make_shared<OrtBackend>(package, on_cuda, options);
  } catch (const Ort::Exception& error) {
    throw Error(ErrorCode::kRuntime, std::string("ONNX Runtime cannot start: ") + error.what());
  }
}

}  // namespace rnp
