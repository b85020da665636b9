// rnp_classify PACKAGE FILE: the class of one image, the options taken and their share of the MACs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "classify_request.hpp"
#include "images.hpp"
#include "preprocessing.hpp"
#include "rnp/controller.hpp"

namespace {

constexpr const char* kUsage =
    "rnp_classify PACKAGE FILE [--penalty P] [--target-macs S] [--threads T] [--json]\n"
    "    FILE: an image (.pgm, .ppm: P2, P3, P5 or P6, 8 bit), or the float32 values of the input (.raw, .bin)\n";
constexpr std::uintmax_t kLargestFile = 1 << 28;

std::vector<float> input_from_file(const std::string& file, const rnp::Manifest& manifest) {
  const std::filesystem::path path(file);
  const std::string bytes = examples::read_file(path, kLargestFile);
  if (path.extension() == ".raw" || path.extension() == ".bin") return examples::image_from_tensor(bytes, manifest);
  if (!manifest.preprocessing) {
    throw rnp::Error(rnp::ErrorCode::kInput,
                     "the package does not say how images become inputs; pass the input's values as a .raw file");
  }
  return examples::input_from_image(examples::image_from_netpbm(bytes), *manifest.preprocessing);
}

// What a class is taken with: softmax of its output.
double probability(const std::vector<float>& outputs, std::size_t best) {
  double sum = 0;
  for (const float output : outputs) sum += std::exp(static_cast<double>(output) - outputs[best]);
  return 1 / sum;
}

void print_json(const std::string& file, const rnp::Result& result, std::size_t best, const std::string& name,
                const rnp::Manifest& manifest) {
  nlohmann::ordered_json json;
  json["image"] = file;
  json["class"] = name;
  json["class_index"] = best;
  json["probability"] = probability(result.outputs, best);
  json["outputs"] = result.outputs;
  json["options"] = result.options;
  json["macs"] = result.macs[0];
  json["macs_share"] = static_cast<double>(result.macs[0]) / static_cast<double>(manifest.macs);
  std::cout << json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
}

void print_text(const std::string& file, const rnp::Result& result, std::size_t best, const std::string& name,
                const rnp::Manifest& manifest) {
  std::printf("%s: %s (p=%.3f), %.1f %% of the MACs\n", file.c_str(), name.c_str(), probability(result.outputs, best),
              100 * static_cast<double>(result.macs[0]) / static_cast<double>(manifest.macs));
  for (std::size_t t = 0; t < manifest.decisions.size(); ++t) {
    std::printf("  %s: option %lld of %lld\n", manifest.decisions[t].conv.c_str(),
                static_cast<long long>(result.options[t]), static_cast<long long>(manifest.option_count(t)));
  }
}

void classify(const examples::Arguments& arguments) {
  const rnp::Package package = rnp::Package::open(arguments.alone()[0]);
  const rnp::Manifest& manifest = package.manifest();
  const std::string& file = arguments.alone()[1];
  const std::vector<float> input = input_from_file(file, manifest);
  rnp::RunOptions run_options;
  run_options.penalty = examples::penalty_from(arguments.number("penalty"), arguments.number("target-macs"), manifest);
  rnp::ControllerOptions options;
  options.threads = static_cast<int>(arguments.integer("threads", 0, 0, 1024));
  rnp::Controller controller(package, options);
  const rnp::Result result = controller.run(input.data(), 1, run_options);
  const auto best =
      static_cast<std::size_t>(std::max_element(result.outputs.begin(), result.outputs.end()) - result.outputs.begin());
  const std::string name = manifest.classes ? manifest.classes->at(best) : std::to_string(best);
  (arguments.has("json") ? print_json : print_text)(file, result, best, name, manifest);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const examples::Arguments arguments(argc, argv, {"penalty", "target-macs", "threads"}, {"json", "help"});
    if (arguments.has("help") || arguments.alone().size() != 2) {
      (arguments.has("help") ? std::cout : std::cerr) << kUsage;
      return arguments.has("help") ? 0 : 2;
    }
    classify(arguments);
    return 0;
  } catch (const std::exception& err) {
    std::cerr << "rnp_classify: " << err.what() << "\n";
    return 1;
  }
}
