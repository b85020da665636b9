// The TensorRT backend on stand-ins for TensorRT and for the driver, which
// check how they are used.
#include <catch2/catch.hpp>

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "NvInfer.h"
#include "fake_cuda.hpp"
#include "rnp/error.hpp"
#include "trt_backend.hpp"

using rnp::DType;
using rnp::Error;
using rnp::ErrorCode;
using rnp::NamedTensors;
using rnp::Tensor;

namespace {

using Catch::Matchers::Contains;

const char* const kDouble =
    "tensor x input float linear -1 3\ntensor y output "
    "float linear -1 3\nfactor 2\n";
const char* const kTriple =
    "tensor x input float linear -1 3\ntensor y output "
    "float linear -1 3\nfactor 3\nscratch 5000\n";

using Engines = std::map<std::string, std::string>;  // path → the text that describes it

// A backend over engines of the test's, and what there has to be of the
// stand-ins before and after.
class Rig {
 public:
  explicit Rig(Engines engines, std::size_t limit_bytes = std::size_t{32} << 20) {
    fake_cuda::reset(limit_bytes);
    fake_tensorrt::reset();
    memory = std::make_shared<rnp::CudaMemory>(std::make_shared<const rnp::CudaDriver>(FAKE_CUDA_LIBRARY), nullptr,
                                               rnp::Allocator{});
    backend = rnp::tensorrt_backend_in(
        memory, {"/set", 8, [engines = std::move(engines)](const std::string& path) { return engines.at(path); }});
  }
  ~Rig() {
    backend.reset();
    const auto counts = fake_tensorrt::counts();
    CHECK((counts.runtimes == 0 && counts.engines == 0 && counts.contexts == 0));
    CHECK(fake_tensorrt::violations() == std::vector<std::string>{});
    memory.reset();
    CHECK(fake_cuda::counts().blocks == 0);
    CHECK(fake_cuda::counts().contexts == 0);
  }
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  Tensor tensor(std::vector<std::int64_t> shape, DType dtype = DType::kFloat32) {
    Tensor made{nullptr, dtype, std::move(shape)};
    made.data = memory->allocate(made.bytes());
    return made;
  }
  Tensor tensor(std::vector<std::int64_t> shape, const std::vector<float>& values) {
    Tensor made = tensor(std::move(shape));
    memory->copy_in(made.data, values.data(), made.bytes());
    return made;
  }
  std::vector<float> values(const Tensor& tensor) {
    std::vector<float> read(tensor.bytes() / sizeof(float));
    memory->copy_out(read.data(), tensor.data, tensor.bytes());
    return read;
  }

  std::shared_ptr<rnp::CudaMemory> memory;
  std::shared_ptr<rnp::Backend> backend;
};

template <class Call>
std::string engine_error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kEngine);
    return error.what();
  }
  FAIL("nothing was thrown");
  return {};
}

}  // namespace

TEST_CASE("the version is written as fingerprints write it") {
  CHECK(rnp::tensorrt_built());
  CHECK(rnp::tensorrt_version() == "10.3.0.26");
  CHECK(rnp::tensorrt_flavor() == "tensorrt");
}

TEST_CASE("a backend describes itself") {
  Rig rig(Engines{});
  CHECK(rig.backend->name() == "tensorrt");
  CHECK(rig.backend->device() == "cuda");
  CHECK(rig.backend->max_batch() == 8);
  CHECK(&rig.backend->memory() == rig.memory.get());
}

TEST_CASE("engines run one after another in the stream, and nothing waits") {
  Rig rig(Engines{{"a.engine", kDouble}, {"b.engine", kTriple}});
  const auto first = rig.backend->open("a.engine");
  const auto second = rig.backend->open("b.engine");
  const Tensor x = rig.tensor({2, 3}, {1, 2, 3, 4, 5, 6}), middle = rig.tensor({2, 3}), y = rig.tensor({2, 3});
  const auto doubled = first->bind({{"x", x}}, {{"y", middle}});
  const auto tripled = second->bind({{"x", middle}}, {{"y", y}});
  const auto before = fake_cuda::counts().synchronisations;
  doubled->run();
  tripled->run();
  CHECK(fake_cuda::counts().synchronisations == before);
  CHECK(rig.values(y) == std::vector<float>{6, 12, 18, 24, 30, 36});
}

TEST_CASE(
    "shapes and addresses are set again only where another call used the "
    "context") {
  Rig rig(Engines{{"a.engine", kDouble}});
  const auto engine = rig.backend->open("a.engine");
  const Tensor x1 = rig.tensor({1, 3}, {1, 1, 1}), y1 = rig.tensor({1, 3});
  const Tensor x2 = rig.tensor({4, 3}, std::vector<float>(12, 2)), y2 = rig.tensor({4, 3});
  const auto one = engine->bind({{"x", x1}}, {{"y", y1}});
  const auto four = engine->bind({{"x", x2}}, {{"y", y2}});
  one->run();
  one->run();
  CHECK(fake_tensorrt::counts().addresses_set == 2);
  four->run();
  CHECK(fake_tensorrt::counts().addresses_set == 4);
  one->run();
  CHECK(fake_tensorrt::counts().addresses_set == 6);
  CHECK(fake_tensorrt::counts().scratches_set == 1);
  CHECK(rig.values(y1) == std::vector<float>(3, 2));
  CHECK(rig.values(y2) == std::vector<float>(12, 4));
}

TEST_CASE("a call made where another was does not pass for it") {
  Rig rig(Engines{{"a.engine", kDouble}});
  const auto engine = rig.backend->open("a.engine");
  const Tensor x = rig.tensor({1, 3}, {1, 1, 1}), y1 = rig.tensor({1, 3}), y2 = rig.tensor({1, 3});
  engine->bind({{"x", x}}, {{"y", y1}})->run();
  engine->bind({{"x", x}}, {{"y", y2}})->run();  // most often at the same address
  CHECK(rig.values(y2) == std::vector<float>(3, 2));
}

TEST_CASE("one scratch buffer serves all, and grows") {
  const auto of = [](int bytes) { return std::string(kDouble) + "scratch " + std::to_string(bytes) + "\n"; };
  Rig rig(Engines{{"small", of(100)}, {"large", of(100000)}, {"middle", of(5000)}});
  const Tensor x = rig.tensor({1, 3}, {1, 2, 3}), y = rig.tensor({1, 3});
  const auto small = rig.backend->open("small");
  const auto call = small->bind({{"x", x}}, {{"y", y}});
  call->run();
  const auto blocks = fake_cuda::counts().blocks;
  const auto large = rig.backend->open("large");
  const auto middle = rig.backend->open("middle");
  CHECK(fake_cuda::counts().blocks == blocks + 1);
  large->bind({{"x", x}}, {{"y", y}})->run();
  middle->bind({{"x", x}}, {{"y", y}})->run();
  call->run();              // takes the new one
  rig.memory->give_back();  // the first is not in use any more
  CHECK(fake_tensorrt::counts().scratches_set == 4);
  CHECK(fake_cuda::counts().blocks == blocks);
  call->run();
  CHECK(rig.values(y) == std::vector<float>{2, 4, 6});
}

TEST_CASE("a backend gives its scratch memory back") {
  Rig rig(Engines{{"a", kTriple}});
  rig.backend->open("a");
  rig.backend.reset();
  rig.memory->give_back();
  CHECK(fake_cuda::counts().blocks == 0);
}

TEST_CASE(
    "outputs that are not wanted get memory of their own, as long as the "
    "call lives") {
  Rig rig({{"a", std::string(kDouble) + "tensor z output float linear -1 1000\n"}});
  const auto engine = rig.backend->open("a");
  const Tensor x = rig.tensor({2, 3}, std::vector<float>(6, 1)), y = rig.tensor({2, 3});
  const auto blocks = fake_cuda::counts().blocks;
  auto call = engine->bind({{"x", x}}, {{"y", y}});
  CHECK(fake_cuda::counts().blocks == blocks + 1);
  call->run();
  CHECK(rig.values(y) == std::vector<float>(6, 2));
  call.reset();
  rig.memory->give_back();
  CHECK(fake_cuda::counts().blocks == blocks);
}

TEST_CASE("channels last in eights are told by the shape in memory") {
  Rig rig(Engines{{"a",
                   "tensor x input half hwc8 -1 11 4 5\ntensor y output "
                   "half hwc8 -1 8 4 5\n"}});
  const auto engine = rig.backend->open("a");
  const Tensor x = rig.tensor({3, 4, 5, 16}, DType::kFloat16), y = rig.tensor({3, 4, 5, 8}, DType::kFloat16);
  engine->bind({{"x", x}}, {{"y", y}})->run();
  rig.memory->synchronise();
  Tensor network_order = x;
  network_order.shape = {3, 11, 4, 5};
  CHECK_THAT(engine_error_of([&] {
               engine->bind({{"x", network_order}}, {{"y", y}});
             }),
             Contains("/set/a") && Contains("'x'") && Contains("type or shape"));
}

TEST_CASE("tensors that do not fit are refused") {
  Rig rig(Engines{{"a", kDouble}});
  const auto engine = rig.backend->open("a");
  const Tensor x = rig.tensor({2, 3}), y = rig.tensor({2, 3}), other_batch = rig.tensor({1, 3});
  const Tensor ints = rig.tensor({2, 3}, DType::kInt32);
  Tensor shifted = rig.tensor({3, 3}), nowhere{nullptr, DType::kFloat32, {2, 3}}, none = x;
  shifted.data = static_cast<std::byte*>(shifted.data) + 64;
  shifted.shape = {2, 3};
  none.shape = {0, 3};
  const auto refused = [&](const NamedTensors& inputs, const NamedTensors& outputs, const char* words) {
    CHECK_THAT(engine_error_of([&] { engine->bind(inputs, outputs); }), Contains("/set/a") && Contains(words));
  };
  refused({}, {{"y", y}}, "'x' is not given");
  refused({{"w", x}}, {{"y", y}}, "'x' is not given");
  refused({{"x", x}, {"w", x}}, {{"y", y}}, "does not have");
  refused({{"x", x}}, {{"z", y}}, "does not have");
  refused({{"x", x}}, {{"y", y}, {"y", y}}, "given already");
  refused({{"x", ints}}, {{"y", y}}, "type or shape");
  refused({{"x", x}}, {{"y", other_batch}}, "type or shape");
  refused({{"x", none}}, {{"y", y}}, "type or shape");
  refused({{"x", shifted}}, {{"y", y}}, "256 bytes");
  refused({{"x", nowhere}}, {{"y", y}}, "256 bytes");
}

TEST_CASE(
    "a batch outside of the profile is refused in TensorRT's words, and "
    "the next call is right") {
  Rig rig(Engines{{"a", kDouble}});
  const auto engine = rig.backend->open("a");
  const Tensor x = rig.tensor({9, 3}), y = rig.tensor({9, 3}), x1 = rig.tensor({1, 3}, {1, 1, 1}),
               y1 = rig.tensor({1, 3});
  const auto good = engine->bind({{"x", x1}}, {{"y", y1}});
  const auto bad = engine->bind({{"x", x}}, {{"y", y}});
  good->run();
  const std::string message = engine_error_of([&] { bad->run(); });
  CHECK_THAT(message, Contains("TensorRT 10.3.0.26 does not take 'x' in a batch of 9") && Contains("profile"));
  CHECK_THAT(message, !Contains("all is well"));
  good->run();
  CHECK(fake_tensorrt::counts().addresses_set == 4);
  CHECK(rig.values(y1) == std::vector<float>(3, 2));
}

TEST_CASE("engines that fail say why") {
  Rig rig(Engines{{"broken", "rubbish"},
                  {"no-context", std::string(kDouble) + "fails context\n"},
                  {"no-run", std::string(kDouble) + "fails enqueue\n"},
                  {"int8", "tensor x input int8 linear -1 3\n"},
                  {"chw32", "tensor x input half chw32 -1 64 2 2\n"},
                  {"hwc8 of two axes", "tensor x input half hwc8 -1 64\n"},
                  {"scalar", "tensor x input float linear\n"},
                  {"unsized", std::string(kDouble) + "tensor w output float linear -1 -1\n"}});
  const auto refused = [&](const char* path, const char* words) {
    CHECK_THAT(engine_error_of([&] { rig.backend->open(path); }),
               Contains(std::string("/set/") + path) && Contains(words));
  };
  refused("broken", "cannot load it: magicTag does not match");
  refused("no-context", "cannot make an execution context: no context today");
  refused("int8", "type that bundles do not have");
  refused("chw32", "laid out");
  refused("hwc8 of two axes", "laid out");
  refused("scalar", "laid out");
  refused("unsized", "a size that is not known");
  const auto engine = rig.backend->open("no-run");
  const Tensor x = rig.tensor({1, 3}), y = rig.tensor({1, 3});
  const auto call = engine->bind({{"x", x}}, {{"y", y}});
  CHECK_THAT(engine_error_of([&] { call->run(); }), Contains("failed to run it: the kernels are tired"));
  CHECK_THAT(engine_error_of([&] { call->run(); }), Contains("tired"));
}

TEST_CASE("where memory is short for an engine, kept blocks are given back first") {
  Rig rig(Engines{{"heavy", std::string(kDouble) + "weights 600000\n"}});
  rig.memory->release(rig.memory->allocate(500000));
  CHECK(rig.backend->open("heavy") != nullptr);
  const Tensor held = rig.tensor({125000});
  const std::string message = engine_error_of([&] { rig.backend->open("heavy"); });
  CHECK_THAT(message, Contains("out of memory for weights") && Contains("give a memory budget"));
}

TEST_CASE("memory that is short for the scratch buffer is the device's error") {
  Rig rig(Engines{{"a", std::string(kDouble) + "scratch 3000000\n"}}, 1 << 20);
  try {
    rig.backend->open("a");
    FAIL("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kDevice);
  }
}

TEST_CASE("a runtime that cannot be made says why") {
  fake_cuda::reset();
  fake_tensorrt::reset();
  fake_tensorrt::fail_runtime();
  auto memory = std::make_shared<rnp::CudaMemory>(std::make_shared<const rnp::CudaDriver>(FAKE_CUDA_LIBRARY), nullptr,
                                                  rnp::Allocator{});
  CHECK_THAT(engine_error_of([&] {
               rnp::tensorrt_backend_in(memory, {"/set", 0, {}});
             }),
             Contains("cannot make a runtime on this device: no runtime today"));
}

TEST_CASE("what is read is not parsed where its hash is wrong") {
  Rig rig(Engines{});
  rig.backend = rnp::tensorrt_backend_in(rig.memory, {"/set", 0, [](const std::string&) -> std::string {
                                                        throw Error(ErrorCode::kFileHash, "not as listed");
                                                      }});
  try {
    rig.backend->open("a");
    FAIL("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kFileHash);
  }
  CHECK(fake_tensorrt::counts().engines == 0);
}

TEST_CASE(
    "calls outlive their engine and backend, and engines go once the "
    "stream is done") {
  Rig rig(Engines{{"a", kDouble}});
  auto engine = rig.backend->open("a");
  const Tensor x = rig.tensor({1, 3}, {1, 2, 3}), y = rig.tensor({1, 3});
  auto call = engine->bind({{"x", x}}, {{"y", y}});
  engine.reset();
  rig.backend.reset();
  call->run();
  call.reset();  // its work is still in the stream
  CHECK(fake_cuda::counts().queued == 0);
  CHECK(rig.values(y) == std::vector<float>{2, 4, 6});
}

TEST_CASE("threads open and run side by side") {
  Rig rig(Engines{{"a", kDouble}, {"b", kTriple}});
  const auto shared = rig.backend->open("a");
  std::vector<std::thread> threads;
  std::vector<int> right(3, 0);
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 50; ++round) {
        const auto own = rig.backend->open("b");
        const Tensor x = rig.tensor({2, 3}, std::vector<float>(6, static_cast<float>(round + t)));
        const Tensor middle = rig.tensor({2, 3}), y = rig.tensor({2, 3});
        const auto first = shared->bind({{"x", x}}, {{"y", middle}});
        const auto second = own->bind({{"x", middle}}, {{"y", y}});
        first->run();
        second->run();
        const bool all = rig.values(y) == std::vector<float>(6, 6 * static_cast<float>(round + t));
        right[static_cast<std::size_t>(t)] += all ? 1 : 0;
        for (const Tensor& tensor : {x, middle, y}) {
          rig.memory->release(tensor.data);
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  CHECK(right == std::vector<int>(3, 50));
}
