// ONNX Runtime's environment: its thread pool and arena, which all sessions of a process share.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <memory>

namespace rnp {

// How sessions get the threads they compute with.
//
// With a pool of its own per session, every pool spins while another one works: 13 chained sessions on 2 threads were
// measured to take 307 ms instead of 65. ONNX Runtime's shared pool is one per process and cannot be resized; one
// thread needs no pool at all.
enum class OrtThreads {
  kCaller,  // the one that calls
  kPool,    // the shared pool
  kOwn,     // a pool of each session's own, which does not spin: where the process has an environment without a pool
};

class OrtEnvironment {
 public:
  // The environment of this process for sessions of so many threads (0: one per core): the one that is in use, or a
  // new one. Whoever holds sessions holds it; with the last holder it goes, and its pool. Throws Error(kRuntime).
  static std::shared_ptr<OrtEnvironment> of_process(int threads);

  explicit OrtEnvironment(int threads);

  // Options as every session of ours has them; `weights_folder`: what external weights are relative to.
  Ort::SessionOptions session_options(const std::filesystem::path& weights_folder, int threads) const;
  OrtThreads threads_for(int threads) const noexcept;
  Ort::Env& get() noexcept { return env_; }

 private:
  Ort::Env env_{nullptr};
  bool has_pool_ = false;
  bool shares_arena_ = false;
};

}  // namespace rnp
