// The CUDA driver, by the few calls that running engines takes; needs no CUDA headers and no library at link time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "backends.hpp"

namespace rnp {

// Types of cuda.h by what they are on every 64-bit system.
using CuContext = void*;
using CuStream = void*;
using CuPointer = std::uint64_t;

inline constexpr int kCuOutOfMemory = 2;

template <class... Parameters>
struct CuFunction {
  const char* name;  // with its version
  int (*pointer)(Parameters...) = nullptr;
};

// The functions of a loaded driver. Immutable; from any thread.
class CudaDriver {
 public:
  // Throws Error(kDevice): there is no such library, it is too old, or it finds no GPU.
  explicit CudaDriver(const std::string& library = "libcuda.so.1");

  // Throws Error(kDevice) with the driver's own words, and what to do where memory is short.
  template <class... Parameters, class... Arguments>
  void call(const CuFunction<Parameters...>& function, Arguments... arguments) const {
    check(function.name, function.pointer(arguments...));
  }
  void check(const char* name, int code) const;

  CuFunction<unsigned> init{"cuInit"};
  CuFunction<int, const char**> get_error_string{"cuGetErrorString"};
  CuFunction<int*> driver_get_version{"cuDriverGetVersion"};
  CuFunction<int*, int> device_get{"cuDeviceGet"};
  CuFunction<char*, int, int> device_get_name{"cuDeviceGetName"};
  CuFunction<int*, int, int> device_get_attribute{"cuDeviceGetAttribute"};
  CuFunction<CuContext*, int> primary_context_retain{"cuDevicePrimaryCtxRetain"};
  CuFunction<int> primary_context_release{"cuDevicePrimaryCtxRelease_v2"};
  CuFunction<CuContext> context_push{"cuCtxPushCurrent_v2"};
  CuFunction<CuContext*> context_pop{"cuCtxPopCurrent_v2"};
  CuFunction<CuStream*, unsigned> stream_create{"cuStreamCreate"};
  CuFunction<CuStream> stream_destroy{"cuStreamDestroy_v2"};
  CuFunction<CuStream> stream_synchronise{"cuStreamSynchronize"};
  CuFunction<CuStream, CuContext*> stream_get_context{"cuStreamGetCtx"};
  CuFunction<CuPointer*, std::size_t> memory_allocate{"cuMemAlloc_v2"};
  CuFunction<CuPointer> memory_free{"cuMemFree_v2"};
  CuFunction<void**, std::size_t, unsigned> host_allocate{"cuMemHostAlloc"};
  CuFunction<void*> host_free{"cuMemFreeHost"};
  CuFunction<CuPointer, const void*, std::size_t, CuStream> copy_to_device{"cuMemcpyHtoDAsync_v2"};
  CuFunction<void*, CuPointer, std::size_t, CuStream> copy_to_host{"cuMemcpyDtoHAsync_v2"};
  CuFunction<CuPointer, CuPointer, std::size_t, CuStream> copy_on_device{"cuMemcpyDtoDAsync_v2"};
  CuFunction<CuPointer, unsigned char, std::size_t, CuStream> set_bytes{"cuMemsetD8Async"};
};

// What the first visible GPU is. Throws Error(kDevice).
CudaDevice first_device(const CudaDriver& driver);

// The primary context of the first visible GPU, which TensorRT, ONNX Runtime and the caller's CUDA runtime use too.
class CudaContext {
 public:
  // Throws Error(kDevice).
  explicit CudaContext(std::shared_ptr<const CudaDriver> driver);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  const CudaDriver& driver() const noexcept { return *driver_; }
  CuContext handle() const noexcept { return handle_; }

 private:
  std::shared_ptr<const CudaDriver> driver_;
  int device_ = 0;
  CuContext handle_ = nullptr;
};

// A context is current in this thread as long as this lives. Throws Error(kDevice).
class CurrentContext {
 public:
  explicit CurrentContext(const CudaContext& context);
  ~CurrentContext();
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

 private:
  const CudaDriver& driver_;
};

}  // namespace rnp
