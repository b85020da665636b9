#include "diagnostics.hpp"

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <utility>

#include "fingerprint.hpp"

namespace rnp {

namespace {

constexpr const char* kBuildHere =
    "build it here, rnp-build BUNDLE -o ENGINES, or load the bundle, which runs anywhere";

// Diagnostics of one package, as they are found.
class Diagnoses {
 public:
  Diagnoses(const Manifest& manifest, Device device, const Surroundings& here)
      : manifest_(manifest), device_(device), here_(here) {}

  void of_bundle() {
    if (!here_.onnxruntime_built) {
      if (here_.tensorrt_built) {
        error(
            ErrorCode::kRuntime, "a bundle is run by ONNX Runtime, and this library was built with TensorRT alone",
            "build engines, rnp-build BUNDLE -o ENGINES --backend tensorrt, and load those; or build the library with "
            "-DRNP_ONNXRUNTIME=ON");
      } else {
        no_onnxruntime("a bundle");
      }
      return;
    }
    if (device_ == Device::kCuda) {
      if (!here_.onnxruntime_has_cuda) {
        error(ErrorCode::kDevice, "this ONNX Runtime has no CUDA provider",
              "link the library with one that has, build engines of TensorRT, or use the CPU");
      } else if (!here_.gpu) {
        no_gpu("use the CPU");
      }
      return;
    }
    const bool on_gpu = device_ == Device::kAuto && here_.onnxruntime_has_cuda && here_.gpu.has_value();
    if (!on_gpu && manifest_.precision == "bf16") {
      error(ErrorCode::kEngine, "the bundle is in bf16, for which ONNX Runtime has no convolutions on the CPU",
            "export with --precision fp16, or run it on a GPU");
    }
  }

  void of_onnxruntime(const EngineSetManifest& engines) {
    if (device_ == Device::kCuda) {
      error(ErrorCode::kDevice, "engine sets of ONNX Runtime are for the CPU",
            "leave the device to it, load the bundle, or build engines of TensorRT");
    }
    if (!here_.onnxruntime_built) return no_onnxruntime("this engine set");
    for (const auto& [name, built] : engines.fingerprint) {
      const auto found = here_.fingerprint.find(name);
      if (found != here_.fingerprint.end() && found->second == built) continue;
      const std::string now = found == here_.fingerprint.end() ? "not there" : "'" + found->second + "'";
      error(ErrorCode::kMismatch, name + " is " + now + " and was '" + built + "' where the engines were built",
            kBuildHere);
    }
  }

  void of_tensorrt(const EngineSetManifest& engines) {
    const std::map<std::string, std::string>& built = engines.fingerprint;
    if (device_ == Device::kCpu) {
      error(ErrorCode::kDevice, "engine sets of TensorRT are for a GPU", "leave the device to it, or load the bundle");
    }
    if (!here_.tensorrt_built) {
      error(ErrorCode::kRuntime, "this engine set is run by TensorRT, which this library was built without",
            "build the library with -DRNP_TENSORRT=ON, or load the bundle");
      return;
    }
    compare(built, "flavor", here_.tensorrt_flavor, "build the library with the headers of that kind of TensorRT");
    of_tensorrt_version(built);
    compare(built, "machine", here_.machine, "build it on such a machine");
    compare(built, "system", here_.system, "build it on this system");
    if (device_ == Device::kCpu) return;
    if (here_.gpu) {
      of_gpu(built, *here_.gpu);
    } else {
      no_gpu("load the bundle, which runs on the CPU");
    }
  }

  void of_agent() {
    if (manifest_.agent_trained) return;
    found_.push_back({Diagnostic::Severity::kWarning, ErrorCode::kEngine,
                      "the agent was not trained: it takes all groups everywhere",
                      "train it, or pass options of your own"});
  }

  std::vector<Diagnostic> take() { return std::move(found_); }

 private:
  // Some Python packages of TensorRT leave the build number out: "10.3.0" is then all that is known of "10.3.0.26".
  void of_tensorrt_version(const std::map<std::string, std::string>& built) {
    const auto found = built.find("tensorrt");
    if (found == built.end()) return;
    const std::string was = found->second + ".", is = here_.tensorrt_version + ".";
    if (is.rfind(was, 0) == 0 || was.rfind(is, 0) == 0) return;
    compare(built, "tensorrt", here_.tensorrt_version, "install that version, or build the set again with this one");
  }

  void of_gpu(const std::map<std::string, std::string>& built, const CudaDevice& gpu) {
    const auto value = [&](const char* name, const std::string& otherwise) {
      const auto found = built.find(name);
      return found == built.end() ? otherwise : found->second;
    };
    const std::string multiprocessors = std::to_string(gpu.multiprocessors);
    const std::string listed = value("compute_capability", "");
    if (!capability_fits(gpu.compute_capability, listed)) {
      error(ErrorCode::kMismatch,
            "built for compute capability '" + listed + "' and " + gpu.name + " has " + gpu.compute_capability,
            "build it for this GPU");
    } else if (value("multiprocessors", multiprocessors) != multiprocessors || value("gpu", gpu.name) != gpu.name) {
      error(ErrorCode::kMismatch,
            "built on " + value("gpu", "another GPU") + " with " + value("multiprocessors", "other") +
                " multiprocessors and here is " + gpu.name + " with " + multiprocessors,
            "build it on this GPU");
    }
  }

  void compare(const std::map<std::string, std::string>& built, const char* name, const std::string& here,
               const char* remedy) {
    const auto found = built.find(name);
    if (found == built.end() || found->second == here) return;
    error(ErrorCode::kMismatch, std::string(name) + " was '" + found->second + "' and is '" + here + "'", remedy);
  }

  void no_onnxruntime(const std::string& what) {
    error(ErrorCode::kRuntime, what + " is run by ONNX Runtime, which this library was built without",
          "build the library with -DRNP_ONNXRUNTIME=ON");
  }

  void no_gpu(const char* remedy) {
    error(ErrorCode::kDevice, "there is no GPU that can be used: " + here_.why_no_gpu, remedy);
  }

  void error(ErrorCode code, std::string message, std::string remedy) {
    found_.push_back({Diagnostic::Severity::kError, code, std::move(message), std::move(remedy)});
  }

  const Manifest& manifest_;
  Device device_;
  const Surroundings& here_;
  std::vector<Diagnostic> found_;
};

}  // namespace

bool capability_fits(const std::string& compute_capability, const std::string& listed) {
  const auto numbers_of = [](const std::string& text) {
    std::vector<long> numbers;
    for (std::size_t i = 0; i < text.size();) {
      if (text[i] < '0' || text[i] > '9') {
        ++i;
        continue;
      }
      char* end = nullptr;
      numbers.push_back(std::strtol(text.c_str() + i, &end, 10));
      i = static_cast<std::size_t>(end - text.c_str());
    }
    return numbers;
  };
  const std::vector<long> mine = numbers_of(compute_capability);
  std::istringstream words(listed);
  for (std::string each; words >> each;) {
    if (each.back() == '+' ? mine >= numbers_of(each) : mine == numbers_of(each)) return true;
  }
  return false;
}

bool asks_for_gpu(const EngineSetManifest* engines, Device device, bool onnxruntime_has_cuda) {
  if (device != Device::kAuto) return device == Device::kCuda;
  return engines == nullptr ? onnxruntime_has_cuda : engines->backend == "tensorrt";
}

Surroundings surroundings(bool with_gpu) {
  Surroundings here;
  here.onnxruntime_built = onnxruntime_built();
  here.onnxruntime_has_cuda = here.onnxruntime_built && onnxruntime_has_cuda();
  here.tensorrt_built = tensorrt_built();
  here.tensorrt_version = tensorrt_version();
  here.tensorrt_flavor = tensorrt_flavor();
  here.fingerprint = fingerprint();
  here.machine = machine_name();
  here.system = system_name();
  if (with_gpu) {
    here.gpu = cuda_device(here.why_no_gpu);
  } else {
    here.why_no_gpu = "none was looked for";
  }
  return here;
}

std::vector<Diagnostic> diagnose(const Manifest& manifest, const EngineSetManifest* engines, Device device,
                                 const Surroundings& here) {
  Diagnoses found(manifest, device, here);
  if (engines == nullptr) {
    found.of_bundle();
  } else if (engines->backend == "onnxruntime") {
    found.of_onnxruntime(*engines);
  } else {
    found.of_tensorrt(*engines);
  }
  found.of_agent();
  return found.take();
}

std::vector<Diagnostic> Package::check(Device device) const {
  const bool with_gpu = asks_for_gpu(engine_set(), device, onnxruntime_built() && onnxruntime_has_cuda());
  return diagnose(manifest(), engine_set(), device, surroundings(with_gpu));
}

}  // namespace rnp
