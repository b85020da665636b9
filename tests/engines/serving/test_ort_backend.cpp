#include <onnxruntime_cxx_api.h>

#include <array>
#include <catch2/catch.hpp>

#include "backends.hpp"
#include "errors.hpp"
#include "ort_environment.hpp"
#include "sample_bundle.hpp"
#include "sha256.hpp"

using namespace rnp;
using namespace rnp::test;
using rnp::testing::error_of;

namespace fs = std::filesystem;

namespace {

constexpr const char* kGraph = "agent/step_00.onnx";

// y = Identity(x), of axis 0 of size 1, with tensors of one of ONNX's element types.
std::string identity(char element) {
  std::string model(
      "\x08\x07\x3a\x37\x0a\x10\x0a\x01x\x12\x01y\x22\x08Identity\x12\x01g"
      "\x5a\x0f\x0a\x01x\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01"
      "\x62\x0f\x0a\x01y\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01\x42\x04\x0a\x00\x10\x0d",
      65);
  const std::string before = "\x0a\x08\x08";
  for (auto at = model.find(before); at != std::string::npos; at = model.find(before, at + 1)) model[at + 3] = element;
  return model;
}

// The sample bundle with a graph that is one.
Package package_with(const TemporaryFolder& folder, const std::string& graph, const std::string& precision = "fp32") {
  Json manifest = sample_manifest();
  for (Json& file : *at(manifest, "files").array()) {
    if (*at(file, "path").text() != kGraph) continue;
    at(file, "bytes") = Json(static_cast<std::int64_t>(graph.size()));
    at(file, "sha256") = Json(sha256_hex(graph));
  }
  at(manifest, "precision") = Json(precision);
  save_bundle(folder.path(), std::move(manifest));
  fs::remove(folder.path() / kGraph);
  write_file(folder.path() / kGraph, graph);
  return Package::open(folder.path());
}

ControllerOptions with_threads(int threads) {
  ControllerOptions options;
  options.device = Device::kCpu;
  options.threads = threads;
  return options;
}

struct Opened {
  TemporaryFolder folder;
  Package package;
  std::shared_ptr<Backend> backend;
  std::shared_ptr<Engine> engine;

  explicit Opened(char element = 1)
      : package(package_with(folder, identity(element))),
        backend(onnxruntime_backend(package, false, with_threads(1))),
        engine(backend->open(kGraph)) {}
};

Tensor vector_of(void* data, DType dtype = DType::kFloat32, std::vector<std::int64_t> shape = {1}) {
  return {data, dtype, std::move(shape)};
}

}  // namespace

TEST_CASE("a bound call reads and writes the given memory, each time") {
  Opened opened;
  float x = 3, y = 0;
  const auto call = opened.engine->bind({{"x", vector_of(&x)}}, {{"y", vector_of(&y)}});
  CHECK(y == 0);
  call->run();
  CHECK(y == 3);
  x = -7;
  call->run();
  CHECK(y == -7);
}

TEST_CASE("a bound call outlives its engine and backend") {
  float x = 3, y = 0;
  std::unique_ptr<BoundCall> call;
  {
    Opened opened;
    call = opened.engine->bind({{"x", vector_of(&x)}}, {{"y", vector_of(&y)}});
  }
  call->run();
  CHECK(y == 3);
}

TEST_CASE("tensors have the type that the graph says") {
  const auto [element, dtype, bytes] = GENERATE(table<char, DType, std::size_t>({{1, DType::kFloat32, 4},
                                                                                 {10, DType::kFloat16, 2},
                                                                                 {16, DType::kBfloat16, 2},
                                                                                 {6, DType::kInt32, 4},
                                                                                 {7, DType::kInt64, 8}}));
  Opened opened(element);
  std::array<char, 8> x{1, 2, 3, 4, 5, 6, 7, 8}, y{};
  opened.engine->bind({{"x", vector_of(&x, dtype)}}, {{"y", vector_of(&y, dtype)}})->run();
  CHECK(std::string(y.data(), bytes) == std::string(x.data(), bytes));
  CHECK(std::all_of(y.begin() + static_cast<std::ptrdiff_t>(bytes), y.end(), [](char c) { return c == 0; }));
}

TEST_CASE("what does not fit is refused before it is run, with the file's name") {
  Opened opened;
  float x = 0, y = 0;
  const NamedTensors good_in{{"x", vector_of(&x)}}, good_out{{"y", vector_of(&y)}};
  const auto refused = [&](const NamedTensors& inputs, const NamedTensors& outputs, const std::string& words) {
    const auto thrown = error_of([&] { opened.engine->bind(inputs, outputs); });
    CHECK(thrown == "engine: " + words);
    CHECK(thrown == "engine: " + (opened.folder.path() / kGraph).string() + ": ONNX Runtime cannot bind it");
  };
  refused({}, good_out, "its input \"x\" is not given");
  refused({{"x", vector_of(&x)}, {"z", vector_of(&x)}}, good_out, "it has no tensor \"z\" there");
  refused(good_in, {{"x", vector_of(&y)}}, "it has no tensor \"x\" there");
  refused({{"x", vector_of(&x, DType::kInt32)}}, good_out, "\"x\" is given int32; it takes float32");
  refused(good_in, {{"y", vector_of(&y, DType::kFloat16)}}, "\"y\" is given float16; it takes float32");
  refused({{"x", vector_of(&x, DType::kFloat32, {1, 1})}}, good_out, "\"x\" is given 2 axes; it has 1");
  refused(good_in, {{"y", vector_of(nullptr)}}, "\"y\" is given no memory");
}

TEST_CASE("what ONNX Runtime says when it runs is an error of ours") {
  Opened opened;
  std::array<float, 2> x{}, y{};
  const auto call =
      opened.engine->bind({{"x", vector_of(&x, DType::kFloat32, {2})}}, {{"y", vector_of(&y, DType::kFloat32, {2})}});
  const auto thrown = error_of([&] { call->run(); });
  CHECK(thrown == "engine: " + (opened.folder.path() / kGraph).string() + ": ONNX Runtime failed: ");
}

TEST_CASE("a graph that is none, or not what was hashed") {
  const TemporaryFolder folder;
  const auto backend = onnxruntime_backend(package_with(folder, "no graph"), false, with_threads(1));
  const auto thrown = error_of([&] { backend->open(kGraph); });
  CHECK(thrown == "engine: " + (folder.path() / kGraph).string() + ": ONNX Runtime " + onnxruntime_version() +
                      " cannot load it: ");
  fs::remove(folder.path() / kGraph);
  write_file(folder.path() / kGraph, "or graph");
  CHECK(error_of([&] { backend->open(kGraph); }) == "file-hash: step_00");
}

TEST_CASE("weights that were replaced since the package was opened are refused") {
  const TemporaryFolder folder;
  const auto backend = onnxruntime_backend(package_with(folder, identity(1)), false, with_threads(1));
  fs::remove(folder.path() / "weights.bin");
  write_file(folder.path() / "weights.bin", "weights.nib");
  CHECK(error_of([&] { backend->open(kGraph); }) == "changed: weights.bin");
}

TEST_CASE("what cannot be run is told before anything is opened") {
  const TemporaryFolder folder;
  const Package package = package_with(folder, identity(1));
  CHECK(error_of([&] { onnxruntime_backend(package, false, with_threads(-1)); }) == "input: threads is -1; pass");
  const TemporaryFolder other;
  const Package narrow = package_with(other, identity(1), "bf16");
  CHECK(error_of([&] { onnxruntime_backend(narrow, false, with_threads(1)); }) == "engine: no convolutions on the CPU");
  if (!onnxruntime_has_cuda()) {
    CHECK(error_of([&] { onnxruntime_backend(package, true, with_threads(1)); }) == "runtime: built without CUDA");
    ControllerOptions on_gpu;
    on_gpu.device = Device::kCuda;
    const Diagnostic first = package.check(Device::kCuda).front();
    CHECK(error_of([&] { open_backend(package, on_gpu); }) ==
          std::string(name_of(first.code)) + ": " + first.message + "; " + first.remedy);
  }
}

TEST_CASE("a bundle is run by ONNX Runtime on the CPU where there is no GPU") {
  const TemporaryFolder folder;
  const auto backend = open_backend(package_with(folder, identity(1)), with_threads(1));
  CHECK(backend->name() == "onnxruntime");
  CHECK(backend->device() == "cpu");
  CHECK(backend->max_batch() == 0);
  CHECK(backend->memory().on_host());
  CHECK(onnxruntime_built());
  CHECK(onnxruntime_version().find('.') != std::string::npos);
}

TEST_CASE("one thread needs no pool; the first that wants more makes the pool that all use") {
  {
    const auto pooled = OrtEnvironment::of_process(2);
    CHECK(OrtEnvironment::of_process(3) == pooled);
    CHECK(pooled->threads_for(0) == OrtThreads::kPool);
    CHECK(pooled->threads_for(7) == OrtThreads::kPool);
    CHECK(pooled->threads_for(1) == OrtThreads::kCaller);
  }
  {
    const auto plain = OrtEnvironment::of_process(1);
    CHECK(OrtEnvironment::of_process(2) == plain);  // it is in use, and cannot be given a pool
    CHECK(plain->threads_for(2) == OrtThreads::kOwn);
  }
  CHECK(OrtEnvironment::of_process(2)->threads_for(2) == OrtThreads::kPool);
}

TEST_CASE("sessions share an arena, and spin only where they share a pool") {
  const TemporaryFolder folder;
  const auto plain = OrtEnvironment::of_process(1);
  const Ort::SessionOptions own = plain->session_options(folder.path(), 2);
  CHECK(own.GetConfigEntry("session.use_env_allocators") == "1");
  CHECK(own.GetConfigEntry("session.intra_op.allow_spinning") == "0");
  CHECK(own.GetConfigEntry("session.model_external_initializers_file_folder_path") == folder.path().string());
  CHECK_FALSE(plain->session_options(folder.path(), 1).HasConfigEntry("session.intra_op.allow_spinning"));
}

TEST_CASE("sessions bring no threads of their own where there is a pool") {
  const auto threads_now = [] {
    return std::distance(fs::directory_iterator("/proc/self/task"), fs::directory_iterator());
  };
  const TemporaryFolder folder;
  const auto backend = onnxruntime_backend(package_with(folder, identity(1)), false, with_threads(3));
  const auto before = threads_now();
  const std::array<std::shared_ptr<Engine>, 2> engines{backend->open(kGraph), backend->open(kGraph)};
  CHECK(threads_now() == before);
}

TEST_CASE("sessions are made beside an environment of the application's that has no pool") {
  const Ort::Env own(ORT_LOGGING_LEVEL_ERROR, "application");
  const TemporaryFolder folder;
  const Package package = package_with(folder, identity(1));
  for (const int threads : {1, 2, 0}) {
    float x = 4, y = 0;
    const auto backend = onnxruntime_backend(package, false, with_threads(threads));
    backend->open(kGraph)->bind({{"x", vector_of(&x)}}, {{"y", vector_of(&y)}})->run();
    CHECK(y == 4);
  }
}
