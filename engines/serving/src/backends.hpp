// What the backends offer to the rest; where one is not built, its *_absent.cpp says so.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "rnp/controller.hpp"

namespace rnp {

// memory.cpp. The allocator is used where it is given.
std::shared_ptr<Memory> host_memory(const Allocator& allocator);

// cuda_driver.cpp: the first visible GPU, by the driver, which is loaded when first asked for.
struct CudaDevice {
  std::string name;
  std::string compute_capability;  // "9.0"
  int multiprocessors = 0;
  int driver_cuda = 0;  // 12080 for 12.8
};
// None where there is no driver or device; then `why_not` says why.
std::optional<CudaDevice> cuda_device(std::string& why_not);

// cuda_memory.cpp. `stream`: a cudaStream_t of the caller's, or null for one of its own. Throws Error(kDevice).
std::shared_ptr<Memory> cuda_memory(void* stream, const Allocator& allocator);
// The stream all its work is in.
void* stream_of(const Memory& cuda_memory) noexcept;

// ort_backend.cpp
bool onnxruntime_built() noexcept;
std::string onnxruntime_version();  // "1.32.0"; empty where not built
bool onnxruntime_has_cuda();        // the library was built with the CUDA provider
// For bundles, and engine sets of "onnxruntime". Throws Error.
std::shared_ptr<Backend> onnxruntime_backend(const Package& package, bool on_cuda, const ControllerOptions& options);

// trt_backend.cpp
bool tensorrt_built() noexcept;
std::string tensorrt_version();  // "10.3.0.26", as fingerprints write it; empty where not built
std::string tensorrt_flavor();   // "tensorrt" or "rtx", as fingerprints write it; empty where not built
std::shared_ptr<Backend> tensorrt_backend(const Package& package, const ControllerOptions& options);

}  // namespace rnp
