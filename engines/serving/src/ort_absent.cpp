// Where the library is built without ONNX Runtime.
#include "backends.hpp"

namespace rnp {

bool onnxruntime_built() noexcept { return false; }
std::string onnxruntime_version() { return {}; }
bool onnxruntime_has_cuda() { return false; }

std::shared_ptr<Backend> onnxruntime_backend(const Package& package, bool, const ControllerOptions&) {
  throw Error(ErrorCode::kRuntime, package.directory().string() +
                                       " is run by ONNX Runtime, which this library was built without; build it with "
                                       "-DRNP_ONNXRUNTIME=ON");
}

}  // namespace rnp
