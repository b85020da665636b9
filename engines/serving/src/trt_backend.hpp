// TensorRT 10.3 to 11, or TensorRT-RTX: the engines of a set, in the stream of one CudaMemory.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "backends.hpp"
#include "cuda_memory.hpp"

namespace rnp {

// An engine set that fits this machine, by Package::check.
struct TrtEngineSet {
  std::filesystem::path directory;
  std::size_t max_batch = 0;
  // The bytes of an engine by its listed path, their hash checked before TensorRT sees them. Throws Error.
  std::function<std::string(const std::string&)> read_verified;
};

// Throws Error(kEngine): TensorRT cannot make a runtime here.
std::shared_ptr<Backend> tensorrt_backend_in(std::shared_ptr<CudaMemory> memory, TrtEngineSet set);

}  // namespace rnp
