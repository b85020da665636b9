// Runs what a request says, for tests that compare with Python: run_arrays
// FOLDER
//
//   FOLDER/request  PACKAGE, a line; then words: threads, memory_budget_bytes,
//   and for each run: first batch POLICY and
//                   counted lists of penalty, penalties, target_macs and
//                   options; rows first to first + batch are its images
//   FOLDER/images   float32 [all, C, H, W]
//   FOLDER/outputs, options, macs: float32, int64, int64 of all runs, one after
//   another
//
// A line "CODE: message" on stderr and exit code 3 where the library throws.
#include <rnp/rnp.hpp>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <numeric>

namespace {

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

// A list: how many, then so many.
template <typename T>
std::vector<T> list_of(std::istream& words) {
  std::size_t count = 0;
  words >> count;
  std::vector<T> values(count);
  for (T& value : values) words >> value;
  return values;
}

void run_all(const std::filesystem::path& folder) {
  std::ifstream request(folder / "request");
  std::string package;
  std::getline(request, package);
  rnp::ControllerOptions settings;
  request >> settings.threads >> settings.memory_budget_bytes;
  const std::string bytes = bytes_of(folder / "images");
  std::vector<float> images(bytes.size() / sizeof(float));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(images.data()));

  rnp::Controller controller(rnp::Package::open(package), settings);
  const auto& shape = controller.package().manifest().input.shape;
  const auto image = static_cast<std::size_t>(
      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<std::int64_t>()));

  std::ofstream outputs(folder / "outputs", std::ios::binary);
  std::ofstream options(folder / "options", std::ios::binary);
  std::ofstream macs(folder / "macs", std::ios::binary);
  std::size_t first = 0, batch = 0;
  std::string policy;
  while (request >> first >> batch >> policy) {
    const auto penalty = list_of<float>(request);
    const auto penalties = list_of<float>(request);
    const auto target_macs = list_of<double>(request);
    const auto given = list_of<std::int64_t>(request);
    rnp::RunOptions asked;
    if (!penalty.empty()) asked.penalty = penalty[0];
    if (!penalties.empty()) asked.penalties = penalties.data();
    if (!target_macs.empty()) asked.target_macs = target_macs[0];
    if (!given.empty()) asked.options = given.data();
    asked.policy = policy_of(policy);
    const rnp::Result result = controller.run(images.data() + first * image, batch, asked);
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
