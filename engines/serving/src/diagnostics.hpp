// What keeps a package from running, given what there is to run it.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "backends.hpp"
#include "rnp/package.hpp"

namespace rnp {

// What this build and this machine have.
struct Surroundings {
  bool onnxruntime_built = false, onnxruntime_has_cuda = false, tensorrt_built = false;
  std::string tensorrt_version, tensorrt_flavor;
  std::map<std::string, std::string> fingerprint;  // of ONNX Runtime here
  std::string machine, system;
  std::optional<CudaDevice> gpu;
  std::string why_no_gpu;
};

// Without the GPU the driver is not loaded.
Surroundings surroundings(bool with_gpu = true);

// Whether a package could be run on a GPU where that device is asked for. `engines` is null for a bundle.
bool asks_for_gpu(const EngineSetManifest* engines, Device device, bool onnxruntime_has_cuda);

// Errors first. `engines` is null for a bundle.
std::vector<Diagnostic> diagnose(const Manifest& manifest, const EngineSetManifest* engines, Device device,
                                 const Surroundings& here);

// Whether "8.6" is among "8.0 8.6 12.0+"; `+`: and all later ones.
bool capability_fits(const std::string& compute_capability, const std::string& listed);

}  // namespace rnp
