#include "backends.hpp"

namespace rnp {
namespace {

void throw_first_error(const std::vector<Diagnostic>& diagnostics) {
  for (const Diagnostic& diagnostic : diagnostics) {
    if (diagnostic.severity == Diagnostic::Severity::kError) {
      throw Error(diagnostic.code, diagnostic.message + "; " + diagnostic.remedy);
    }
  }
}

// Whether ONNX Runtime is built for CUDA and there is a GPU.
bool onnxruntime_has_a_gpu() {
  std::string why_not;
  return onnxruntime_has_cuda() && cuda_device(why_not).has_value();
}

}  // namespace

std::shared_ptr<Backend> open_backend(const Package& package, const ControllerOptions& options) {
  throw_first_error(package.check(options.device));
  if (const EngineSetManifest* engines = package.engine_set()) {
    if (engines->backend == "tensorrt") return tensorrt_backend(package, options);
    return onnxruntime_backend(package, false, options);  // made for the CPU
  }
  const bool on_cuda = options.device == Device::kCuda || (options.device == Device::kAuto && onnxruntime_has_a_gpu());
  return onnxruntime_backend(package, on_cuda, options);
}

}  // namespace rnp
