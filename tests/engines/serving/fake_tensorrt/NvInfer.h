// A stand-in for TensorRT 10's runtime: what trt_backend.cpp uses of it, by the
// same names. An "engine" is a text that describes what it takes and gives; see
// fake_tensorrt.cpp. It works in streams of the stand-in driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#ifndef NV_TENSORRT_MINOR  // a test may want another
#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 3
#endif

struct CUstream_st;
using cudaStream_t = CUstream_st*;

extern "C" {
std::int32_t getInferLibMajorVersion() noexcept;
std::int32_t getInferLibMinorVersion() noexcept;
std::int32_t getInferLibPatchVersion() noexcept;
std::int32_t getInferLibBuildVersion() noexcept;
}

namespace nvinfer1 {

enum class DataType : std::int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBF16 = 7, kINT64 = 8 };
enum class TensorFormat : std::int32_t { kLINEAR = 0, kHWC8 = 2, kCHW32 = 5 };
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class ExecutionContextAllocationStrategy : std::int32_t { kSTATIC = 0, kON_PROFILE_CHANGE = 1, kUSER_MANAGED = 2 };

struct Dims {
  std::int32_t nbDims;
  std::int64_t d[8];
};

class ILogger {
 public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};

struct FakeTensor {
  std::string name;
  TensorIOMode mode;
  DataType dtype;
  TensorFormat format;
  Dims dims;
};

struct FakeEngine {
  std::vector<FakeTensor> tensors;
  std::int64_t scratch_bytes = 0, max_batch = 8;
  float factor = 1;
  std::map<std::string, bool> fails;  // "enqueue", "context"

  const FakeTensor* find(const char* name) const;
};

class IExecutionContext {
 public:
  explicit IExecutionContext(std::shared_ptr<const FakeEngine> engine);
  ~IExecutionContext();
  IExecutionContext(const IExecutionContext&) = delete;
  IExecutionContext& operator=(const IExecutionContext&) = delete;
  void setDeviceMemoryV2(void* memory, std::int64_t bytes) noexcept;
  bool setInputShape(const char* name, const Dims& dims) noexcept;
  bool setTensorAddress(const char* name, void* data) noexcept;
  bool enqueueV3(cudaStream_t stream) noexcept;

 private:
  std::shared_ptr<const FakeEngine> engine_;
  std::map<std::string, void*> addresses_;
  void* scratch_ = nullptr;
  std::int64_t scratch_bytes_ = 0, batch_ = 0;
};

class ICudaEngine {
 public:
  explicit ICudaEngine(FakeEngine engine);
  ~ICudaEngine();
  ICudaEngine(const ICudaEngine&) = delete;
  ICudaEngine& operator=(const ICudaEngine&) = delete;
  std::int32_t getNbIOTensors() const noexcept;
  const char* getIOTensorName(std::int32_t index) const noexcept;
  Dims getTensorShape(const char* name) const noexcept;
  DataType getTensorDataType(const char* name) const noexcept;
  TensorIOMode getTensorIOMode(const char* name) const noexcept;
  TensorFormat getTensorFormat(const char* name) const noexcept;
  std::int64_t getDeviceMemorySizeV2() const noexcept;
  IExecutionContext* createExecutionContext(
      ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC) noexcept;

 private:
  std::shared_ptr<const FakeEngine> engine_;
};

class IRuntime {
 public:
  IRuntime();
  ~IRuntime();
  IRuntime(const IRuntime&) = delete;
  IRuntime& operator=(const IRuntime&) = delete;
  ICudaEngine* deserializeCudaEngine(const void* plan, std::size_t bytes) noexcept;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1

namespace fake_tensorrt {

// What was done otherwise than TensorRT wants it, such as from two threads at
// once; empty: nothing.
std::vector<std::string> violations();
struct Counts {
  std::size_t runtimes, engines, contexts;   // that there are
  std::size_t addresses_set, scratches_set;  // so far
};
Counts counts();
void reset();
// The next runtime cannot be made.
void fail_runtime();

}  // namespace fake_tensorrt
