// Runs what a request says, for tests that compare with Python: run_arrays FOLDER
//
//   FOLDER/request.json  {"package", "threads", "memory_budget_bytes"?, "runs": [{"first", "batch", "penalty"?,
//   "penalties"?,
//                        "target_macs"?, "options"?, "policy"}]}; a run's images are rows first to first + batch
//   FOLDER/images        float32 [all, C, H, W]
//   FOLDER/outputs, options, macs: float32, int64, int64 of all runs, one after another
//
// A line "CODE: message" on stderr and exit code 3 where the library throws.
#include <rnp/rnp.hpp>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

namespace {

using Json = nlohmann::json;

std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

template <typename T>
void append(std::ofstream& stream, const std::vector<T>& values) {
  stream.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
}

rnp::Policy policy_of(const std::string& name) {
  if (name == "serial") return rnp::Policy::kSerial;
  return name == "round-up" ? rnp::Policy::kRoundUp : rnp::Policy::kRegroup;
}

// A run as asked for; `penalties` and `options` keep what its pointers point to.
rnp::RunOptions run_options(const Json& run, std::vector<float>& penalties, std::vector<std::int64_t>& options) {
  rnp::RunOptions asked;
  if (run.contains("penalty")) asked.penalty = run["penalty"].get<float>();
  if (run.contains("target_macs")) asked.target_macs = run["target_macs"].get<double>();
  if (run.contains("penalties")) {
    penalties = run["penalties"].get<std::vector<float>>();
    asked.penalties = penalties.data();
  }
  if (run.contains("options")) {
    for (const Json& row : run["options"]) {
      for (const Json& option : row) options.push_back(option.get<std::int64_t>());
    }
    asked.options = options.data();
  }
  asked.policy = policy_of(run["policy"].get<std::string>());
  return asked;
}

void run_all(const std::filesystem::path& folder) {
  const Json request = Json::parse(bytes_of(folder / "request.json"));
  const std::string bytes = bytes_of(folder / "images");
  std::vector<float> images(bytes.size() / sizeof(float));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(images.data()));

  rnp::ControllerOptions settings;
  settings.threads = request["threads"].get<int>();
  settings.memory_budget_bytes = request.value("memory_budget_bytes", std::uint64_t{0});
  rnp::Controller controller(rnp::Package::open(request["package"].get<std::string>()), settings);
  const auto& shape = controller.package().manifest().input.shape;
  const auto image = static_cast<std::size_t>(
      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<std::int64_t>()));

  std::ofstream outputs(folder / "outputs", std::ios::binary);
  std::ofstream options(folder / "options", std::ios::binary);
  std::ofstream macs(folder / "macs", std::ios::binary);
  for (const Json& run : request["runs"]) {
    std::vector<float> penalties;
    std::vector<std::int64_t> given;
    const rnp::RunOptions asked = run_options(run, penalties, given);
    const float* first = images.data() + run["first"].get<std::size_t>() * image;
    const rnp::Result result = controller.run(first, run["batch"].get<std::size_t>(), asked);
    append(outputs, result.outputs);
    append(options, result.options);
    append(macs, result.macs);
  }
}

}  // namespace

int main(int, char** arguments) {
  try {
    run_all(arguments[1]);
  } catch (const rnp::Error& error) {
    std::cerr << rnp::name_of(error.code()) << ": " << error.what() << '\n';
    return 3;
  }
  return 0;
}
