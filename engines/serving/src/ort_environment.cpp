#include "ort_environment.hpp"

#include <onnxruntime_session_options_config_keys.h>

#include <array>
#include <mutex>
#include <string>

#include "rnp/error.hpp"

namespace rnp {
namespace {

constexpr auto kErrorsOnly = ORT_LOGGING_LEVEL_ERROR;  // warnings are about graphs that were verified at export
constexpr const char* kLogName = "rnp_deploy";

// y = Identity(x), as ONNX: the smallest model that shows whether sessions can use a pool.
constexpr std::array<unsigned char, 65> kIdentity{
    0x08, 0x07, 0x3a, 0x37, 0x0a, 0x10, 0x0a, 0x01, 0x78, 0x12, 0x01, 0x79, 0x22, 0x08, 0x49, 0x64, 0x65,
    0x6e, 0x74, 0x69, 0x74, 0x79, 0x12, 0x01, 0x67, 0x5a, 0x0f, 0x0a, 0x01, 0x78, 0x12, 0x0a, 0x0a, 0x08,
    0x08, 0x01, 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 0x62, 0x0f, 0x0a, 0x01, 0x79, 0x12, 0x0a, 0x0a, 0x08,
    0x08, 0x01, 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 0x42, 0x04, 0x0a, 0x00, 0x10, 0x0d};

// Where the application made an environment before us, ONNX Runtime gives that one back, whatever was asked for; only
// a session tells whether it has a pool.
bool takes_pooled_sessions(Ort::Env& env) {
  Ort::SessionOptions options;
  options.DisablePerSessionThreads().SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
  try {
    Ort::Session(env, kIdentity.data(), kIdentity.size(), options);
    return true;
  } catch (const Ort::Exception&) {
    return false;
  }
}

Ort::Env env_with_pool(int threads) {
  Ort::ThreadingOptions threading;
  threading.SetGlobalIntraOpNumThreads(threads).SetGlobalInterOpNumThreads(1);
  return Ort::Env(threading, kErrorsOnly, kLogName);
}

// Whether sessions can take scratch memory from one arena, instead of keeping one each.
bool share_arena(Ort::Env& env) {
  try {
    const Ort::MemoryInfo info("Cpu", OrtArenaAllocator, 0, OrtMemTypeDefault);
    env.CreateAndRegisterAllocator(info, Ort::ArenaCfg(0, 1, -1, -1));
    return true;
  } catch (const Ort::Exception&) {
    return false;
  }
}

}  // namespace

std::shared_ptr<OrtEnvironment> OrtEnvironment::of_process(int threads) {
  if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
    throw Error(ErrorCode::kRuntime,
                std::string("the library of ONNX Runtime here is ") + OrtGetApiBase()->GetVersionString() +
                    ", older than the headers this was built with (1." + std::to_string(ORT_API_VERSION) +
                    "); load a newer library, or build with its own headers");
  }
  static std::mutex mutex;
  static std::weak_ptr<OrtEnvironment> current;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<OrtEnvironment> environment = current.lock();
  if (environment == nullptr) {
    try {
      environment = std::make_shared<OrtEnvironment>(threads);
    } catch (const Ort::Exception& error) {
      throw Error(ErrorCode::kRuntime, std::string("ONNX Runtime cannot start: ") + error.what());
    }
    current = environment;
  }
  return environment;
}

OrtEnvironment::OrtEnvironment(int threads)
    : env_(threads == 1 ? Ort::Env(kErrorsOnly, kLogName) : env_with_pool(threads)),
      has_pool_(threads != 1 && takes_pooled_sessions(env_)),
      shares_arena_(share_arena(env_)) {}

Ort::SessionOptions OrtEnvironment::session_options(const std::filesystem::path& weights_folder, int threads) const {
  Ort::SessionOptions options;
  options.SetLogSeverityLevel(kErrorsOnly);
  options.AddConfigEntry(kOrtSessionOptionsModelExternalInitializersFileFolderPath,
                         std::filesystem::absolute(weights_folder).c_str());
  switch (threads_for(threads)) {
    case OrtThreads::kCaller:
      options.SetIntraOpNumThreads(1);
      break;
    case OrtThreads::kPool:
      options.DisablePerSessionThreads();
      break;
    case OrtThreads::kOwn:
      options.SetIntraOpNumThreads(threads);
      options.AddConfigEntry(kOrtSessionOptionsConfigAllowIntraOpSpinning, "0");
      break;
  }
  if (shares_arena_) options.AddConfigEntry(kOrtSessionOptionsConfigUseEnvAllocators, "1");
  return options;
}

OrtThreads OrtEnvironment::threads_for(int threads) const noexcept {
  if (threads == 1) return OrtThreads::kCaller;
  return has_pool_ ? OrtThreads::kPool : OrtThreads::kOwn;
}

}  // namespace rnp
