// The driver's calls and errors, on a stand-in for it.
#include <catch2/catch.hpp>

#include "cuda_driver.hpp"
#include "fake_cuda.hpp"
#include "rnp/error.hpp"

using rnp::CudaContext;
using rnp::CudaDriver;
using rnp::CurrentContext;
using rnp::Error;
using rnp::ErrorCode;

namespace {

std::shared_ptr<const CudaDriver> stand_in() { return std::make_shared<const CudaDriver>(FAKE_CUDA_LIBRARY); }

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kDevice);
    return error.what();
  }
  FAIL("nothing was thrown");
  return {};
}

using Catch::Matchers::Contains;

}  // namespace

TEST_CASE("the first device is described") {
  fake_cuda::reset();
  const rnp::CudaDevice device = rnp::first_device(*stand_in());
  CHECK(device.name == "NVIDIA Stand-in");
  CHECK(device.compute_capability == "8.6");
  CHECK(device.multiprocessors == 108);
  CHECK(device.driver_cuda == 13000);
}

TEST_CASE("a machine without a driver says what to do") {
  const std::string message = message_of([] { CudaDriver("libno_such_driver.so.1"); });
  CHECK_THAT(message,
             Contains("no NVIDIA driver here") && Contains("libno_such_driver.so.1") && Contains("--gpus all"));
}

TEST_CASE("a driver that lacks a function is too old") {
  CHECK_THAT(message_of([] { CudaDriver("libm.so.6"); }), Contains("no cuInit") && Contains("install a newer one"));
}

TEST_CASE("a driver without a device says so in its own words") {
  fake_cuda::reset();
  fake_cuda::fail_next("cuInit", 100);
  CHECK_THAT(message_of([] { stand_in(); }), Contains("cuInit failed: no CUDA-capable device is detected (error 100)"));
}

TEST_CASE("a code without words is told by its number") {
  fake_cuda::reset();
  CHECK_THAT(message_of([] { stand_in()->check("cuSomething", 12345); }),
             Contains("cuSomething failed: no description (error 12345)"));
}

TEST_CASE("want of memory comes with remedies, and nothing else does") {
  fake_cuda::reset();
  const auto driver = stand_in();
  CHECK_THAT(message_of([&] { driver->check("cuMemAlloc_v2", 2); }),
             Contains("out of memory") && Contains("memory_budget_bytes") && Contains("branches='outputs'"));
  CHECK_THAT(message_of([&] { driver->check("cuMemAlloc_v2", 700); }), !Contains("memory_budget_bytes"));
}

TEST_CASE("cuda_device says why there is none") {
  std::string why_not;
  if (const auto device = rnp::cuda_device(why_not)) {  // on a machine with a GPU
    CHECK_FALSE(device->name.empty());
    CHECK(why_not.empty());
  } else {
    CHECK_FALSE(why_not.empty());
  }
}

TEST_CASE("the context is current as long as it is wanted, and given back") {
  fake_cuda::reset();
  {
    const CudaContext context(stand_in());
    CHECK(fake_cuda::counts().contexts == 1);
    CHECK_FALSE(fake_cuda::is_current());
    {
      const CurrentContext outer(context);
      {
        const CurrentContext inner(context);
        CHECK(fake_cuda::is_current());
      }
      CHECK(fake_cuda::is_current());
    }
    CHECK_FALSE(fake_cuda::is_current());
    fake_cuda::fail_next("cuCtxPushCurrent_v2", 700);
    CHECK_THAT(message_of([&] { CurrentContext{context}; }), Contains("illegal memory access"));
    CHECK_FALSE(fake_cuda::is_current());
  }
  CHECK(fake_cuda::counts().contexts == 0);
}
