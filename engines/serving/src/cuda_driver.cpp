#include "cuda_driver.hpp"

#include <dlfcn.h>

#include <array>
#include <utility>

#include "rnp/error.hpp"

namespace rnp {
namespace {

// Attributes of cuDeviceGetAttribute.
constexpr int kMultiprocessors = 16, kMajor = 75, kMinor = 76;

template <class... Parameters>
void load(void* library, CuFunction<Parameters...>& function) {
  void* symbol = dlsym(library, function.name);
  if (symbol == nullptr) {
    throw Error(ErrorCode::kDevice,
                std::string("the CUDA driver has no ") + function.name + ": it is too old; install a newer one");
  }
  function.pointer = reinterpret_cast<int (*)(Parameters...)>(symbol);
}

template <class... Functions>
void load_all(void* library, Functions&... functions) {
  (load(library, functions), ...);
}

}  // namespace

CudaDriver::CudaDriver(const std::string& library) {
  // Never closed: the driver keeps threads of its own, and others in the process may have it too.
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    throw Error(ErrorCode::kDevice, "there is no NVIDIA driver here (" + library +
                                        " cannot be loaded); on a machine with a GPU install it, in a container "
                                        "pass the GPU through (--gpus all)");
  }
  load_all(handle, init, get_error_string, driver_get_version, device_get, device_get_name, device_get_attribute,
           primary_context_retain, primary_context_release, context_push, context_pop, stream_create, stream_destroy,
           stream_synchronise, stream_get_context, memory_allocate, memory_free, host_allocate, host_free,
           copy_to_device, copy_to_host, copy_on_device, set_bytes);
  call(init, 0U);
}

void CudaDriver::check(const char* name, int code) const {
  if (code == 0) {
    return;
  }
  const char* words = nullptr;
  get_error_string.pointer(code, &words);
  std::string message = std::string("the CUDA driver: ") + name +
                        " failed: " + (words != nullptr ? words : "no description") + " (error " +
                        std::to_string(code) + ")";
  if (code == kCuOutOfMemory) {
    message += "; free GPU memory: smaller batches, memory_budget_bytes, or a bundle exported with branches='outputs'";
  }
  throw Error(ErrorCode::kDevice, message);
}

CudaDevice first_device(const CudaDriver& driver) {
  CudaDevice device;
  int handle = 0, major = 0, minor = 0;
  std::array<char, 256> name{};
  driver.call(driver.driver_get_version, &device.driver_cuda);
  driver.call(driver.device_get, &handle, 0);
  driver.call(driver.device_get_name, name.data(), static_cast<int>(name.size() - 1), handle);
  driver.call(driver.device_get_attribute, &device.multiprocessors, kMultiprocessors, handle);
  driver.call(driver.device_get_attribute, &major, kMajor, handle);
  driver.call(driver.device_get_attribute, &minor, kMinor, handle);
  device.name = name.data();
  device.compute_capability = std::to_string(major) + "." + std::to_string(minor);
  return device;
}

std::optional<CudaDevice> cuda_device(std::string& why_not) {
  try {
    return first_device(CudaDriver());
  } catch (const Error& error) {
    why_not = error.what();
    return std::nullopt;
  }
}

CudaContext::CudaContext(std::shared_ptr<const CudaDriver> driver) : driver_(std::move(driver)) {
  driver_->call(driver_->device_get, &device_, 0);
  driver_->call(driver_->primary_context_retain, &handle_, device_);
}

CudaContext::~CudaContext() { driver_->primary_context_release.pointer(device_); }

CurrentContext::CurrentContext(const CudaContext& context) : driver_(context.driver()) {
  driver_.call(driver_.context_push, context.handle());
}

CurrentContext::~CurrentContext() {
  CuContext popped = nullptr;
  driver_.context_pop.pointer(&popped);
}

}  // namespace rnp
