// In the place of trt_backend.cpp where the library is built without TensorRT.
#include "backends.hpp"
#include "rnp/error.hpp"

namespace rnp {

bool tensorrt_built() noexcept { return false; }

std::string tensorrt_version() { return {}; }

std::string tensorrt_flavor() { return {}; }

std::shared_ptr<Backend> tensorrt_backend(const Package& package, const ControllerOptions&) {
  throw Error(ErrorCode::kRuntime, package.directory().string() +
                                       ": this library was built without TensorRT; build it with -DRNP_TENSORRT=ON, "
                                       "or run the bundle, or an engine set of ONNX Runtime");
}

}  // namespace rnp
