#include "diagnostics.hpp"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

using namespace rnp;

namespace {

Surroundings cpu_machine() {
  Surroundings here;
  here.onnxruntime_built = true;
  here.fingerprint = {{"onnxruntime", "1.32.0"}, {"machine", "x86_64"}, {"processor", "EPYC"}, {"features", "avx"}};
  here.machine = "x86_64";
  here.system = "Linux";
  here.why_no_gpu = "there is no driver";
  return here;
}

Surroundings gpu_machine() {
  Surroundings here = cpu_machine();
  here.onnxruntime_has_cuda = true;
  here.tensorrt_built = true;
  here.tensorrt_version = "10.3.0.26";
  here.tensorrt_flavor = "tensorrt";
  here.gpu = CudaDevice{"H100", "9.0", 132, 12080};
  return here;
}

EngineSetManifest engines_of(const std::string& backend, std::map<std::string, std::string> fingerprint) {
  EngineSetManifest engines;
  engines.backend = backend;
  engines.fingerprint = std::move(fingerprint);
  return engines;
}

EngineSetManifest tensorrt_engines() {
  return engines_of("tensorrt", {{"flavor", "tensorrt"},
                                 {"tensorrt", "10.3.0.26"},
                                 {"machine", "x86_64"},
                                 {"system", "Linux"},
                                 {"gpu", "H100"},
                                 {"compute_capability", "9.0"},
                                 {"multiprocessors", "132"}});
}

// Codes in order, each with its first word in lower case for a warning.
std::vector<std::string> codes(const std::vector<Diagnostic>& found) {
  std::vector<std::string> names;
  for (const Diagnostic& each : found) {
    CHECK_FALSE(each.message.empty());
    CHECK_FALSE(each.remedy.empty());
    names.push_back((each.severity == Diagnostic::Severity::kWarning ? "warning " : "") +
                    std::string(name_of(each.code)));
  }
  return names;
}

using Codes = std::vector<std::string>;

}  // namespace

TEST_CASE("what keeps a bundle from running") {
  Manifest manifest;
  const auto of = [&](Device device, const Surroundings& here) {
    return codes(diagnose(manifest, nullptr, device, here));
  };
  CHECK(of(Device::kAuto, cpu_machine()).empty());
  CHECK(of(Device::kCpu, cpu_machine()).empty());
  CHECK(of(Device::kCuda, cpu_machine()) == Codes{"device"});
  CHECK(of(Device::kCuda, gpu_machine()).empty());
  Surroundings here = gpu_machine();
  here.gpu.reset();
  CHECK(of(Device::kCuda, here) == Codes{"device"});
  CHECK_THAT(diagnose(manifest, nullptr, Device::kCuda, here)[0].message, Catch::Contains("there is no driver"));
  CHECK(of(Device::kAuto, here).empty());

  here.onnxruntime_built = false;
  CHECK(of(Device::kAuto, here) == Codes{"runtime"});
  CHECK_THAT(diagnose(manifest, nullptr, Device::kAuto, here)[0].remedy, Catch::Contains("rnp-build"));
  here.tensorrt_built = false;
  CHECK(of(Device::kAuto, here) == Codes{"runtime"});
  CHECK_THAT(diagnose(manifest, nullptr, Device::kAuto, here)[0].remedy, !Catch::Contains("rnp-build"));
}

TEST_CASE("bf16 needs a GPU") {
  Manifest manifest;
  manifest.precision = "bf16";
  CHECK(codes(diagnose(manifest, nullptr, Device::kAuto, cpu_machine())) == Codes{"engine"});
  CHECK(codes(diagnose(manifest, nullptr, Device::kCpu, gpu_machine())) == Codes{"engine"});
  CHECK(diagnose(manifest, nullptr, Device::kAuto, gpu_machine()).empty());
  CHECK(diagnose(manifest, nullptr, Device::kCuda, gpu_machine()).empty());
  manifest.precision = "fp16";
  CHECK(diagnose(manifest, nullptr, Device::kCpu, cpu_machine()).empty());
}

TEST_CASE("an agent that was not trained is a warning, after the errors") {
  Manifest manifest;
  manifest.agent_trained = false;
  CHECK(codes(diagnose(manifest, nullptr, Device::kCpu, cpu_machine())) == Codes{"warning engine"});
  CHECK(codes(diagnose(manifest, nullptr, Device::kCuda, cpu_machine())) == Codes{"device", "warning engine"});
}

TEST_CASE("an engine set of ONNX Runtime fits one processor") {
  const Manifest manifest;
  EngineSetManifest engines = engines_of("onnxruntime", cpu_machine().fingerprint);
  CHECK(diagnose(manifest, &engines, Device::kAuto, cpu_machine()).empty());
  CHECK(codes(diagnose(manifest, &engines, Device::kCuda, gpu_machine())) == Codes{"device"});
  engines.fingerprint["processor"] = "Xeon";
  engines.fingerprint["new"] = "1";
  const std::vector<Diagnostic> found = diagnose(manifest, &engines, Device::kAuto, cpu_machine());
  REQUIRE(codes(found) == Codes{"mismatch", "mismatch"});
  CHECK_THAT(found[0].message, Catch::Contains("new is not there and was '1'"));
  CHECK_THAT(found[1].message, Catch::Contains("processor is 'EPYC' and was 'Xeon'"));
  Surroundings here = cpu_machine();
  here.onnxruntime_built = false;
  CHECK(codes(diagnose(manifest, &engines, Device::kAuto, here)) == Codes{"runtime"});
  engines.fingerprint.clear();
  CHECK(diagnose(manifest, &engines, Device::kAuto, cpu_machine()).empty());
}

TEST_CASE("an engine set of TensorRT fits one GPU") {
  const Manifest manifest;
  const auto of = [&](const EngineSetManifest& engines, const Surroundings& here, Device device = Device::kAuto) {
    return codes(diagnose(manifest, &engines, device, here));
  };
  CHECK(of(tensorrt_engines(), gpu_machine()).empty());
  CHECK(of(tensorrt_engines(), gpu_machine(), Device::kCpu) == Codes{"device"});
  CHECK(of(tensorrt_engines(), cpu_machine()) == Codes{"runtime"});
  Surroundings here = gpu_machine();
  here.gpu.reset();
  CHECK(of(tensorrt_engines(), here) == Codes{"device"});
  for (const char* name : {"flavor", "tensorrt", "machine", "system", "gpu", "compute_capability", "multiprocessors"}) {
    EngineSetManifest engines = tensorrt_engines();
    engines.fingerprint[name] = "8.0";
    INFO(name);
    const std::vector<Diagnostic> found = diagnose(manifest, &engines, Device::kAuto, gpu_machine());
    REQUIRE(codes(found) == Codes{"mismatch"});
    CHECK_THAT(found[0].message, Catch::Contains("8.0"));
  }
  EngineSetManifest unnumbered = tensorrt_engines();
  unnumbered.fingerprint["tensorrt"] = "10.3.0";  // as Python packages without the build number say it
  CHECK(of(unnumbered, gpu_machine()).empty());
  unnumbered.fingerprint["tensorrt"] = "10.3.0.2";
  CHECK(of(unnumbered, gpu_machine()) == Codes{"mismatch"});
  EngineSetManifest several = engines_of("tensorrt", {{"flavor", "tensorrt"}, {"compute_capability", "8.0 8.6+"}});
  CHECK(of(several, gpu_machine()).empty());
  several.fingerprint.erase("compute_capability");
  CHECK(of(several, gpu_machine()) == Codes{"mismatch"});
}

TEST_CASE("compute capabilities are compared as numbers") {
  CHECK(capability_fits("8.6", "8.0 8.6 8.9"));
  CHECK_FALSE(capability_fits("8.7", "8.0 8.6 8.9"));
  CHECK(capability_fits("12.1", "12.0+"));
  CHECK(capability_fits("12.0", "9.0+"));
  CHECK_FALSE(capability_fits("9.0", "12.0+"));
  CHECK_FALSE(capability_fits("9.0", ""));
}

TEST_CASE("the driver is asked only where a GPU could be used") {
  const EngineSetManifest of_tensorrt = tensorrt_engines(), of_onnxruntime = engines_of("onnxruntime", {});
  for (const EngineSetManifest* engines : {static_cast<const EngineSetManifest*>(nullptr), &of_tensorrt}) {
    CHECK(asks_for_gpu(engines, Device::kCuda, false));
    CHECK_FALSE(asks_for_gpu(engines, Device::kCpu, true));
  }
  CHECK(asks_for_gpu(nullptr, Device::kAuto, true));
  CHECK_FALSE(asks_for_gpu(nullptr, Device::kAuto, false));
  CHECK(asks_for_gpu(&of_tensorrt, Device::kAuto, false));
  CHECK_FALSE(asks_for_gpu(&of_onnxruntime, Device::kAuto, true));
  CHECK_FALSE(surroundings(false).gpu.has_value());
  Surroundings here = gpu_machine();
  here.gpu.reset();  // as it is where none was looked for
  CHECK(codes(diagnose(Manifest{}, &of_tensorrt, Device::kCpu, here)) == Codes{"device"});
}

TEST_CASE("what is here is found out without failing") {
  const Surroundings here = surroundings();
  CHECK(here.fingerprint.count("processor") == 1);
  CHECK((here.gpu.has_value() || !here.why_no_gpu.empty()));
}
