#include "fingerprint.hpp"

#include <sys/utsname.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "backends.hpp"

namespace rnp {

namespace {

// Instruction sets that decide which kernels and which memory layout ONNX Runtime takes.
constexpr const char* kFeatures[] = {"sse4_1",   "avx",      "fma",      "avx2",        "avx512f",
                                     "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16",
                                     "amx_bf16", "amx_int8", "asimd",    "asimddp",     "fphp",
                                     "i8mm",     "bf16",     "sve",      "sve2"};

std::string_view stripped(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  const std::size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

// The first value of a field; empty where there is none.
std::string_view value_of(std::string_view cpuinfo, std::string_view field) {
  while (!cpuinfo.empty()) {
    const std::size_t end = std::min(cpuinfo.find('\n'), cpuinfo.size());
    const std::string_view line = cpuinfo.substr(0, end);
    const std::size_t colon = std::min(line.find(':'), line.size());
    if (stripped(line.substr(0, colon)) == field) {
      return colon == line.size() ? std::string_view() : stripped(line.substr(colon + 1));
    }
    cpuinfo.remove_prefix(std::min(end + 1, cpuinfo.size()));
  }
  return {};
}

utsname system() {
  utsname named{};
  uname(&named);
  return named;
}

}  // namespace

std::string machine_name() { return system().machine; }

std::string system_name() { return system().sysname; }

std::map<std::string, std::string> fingerprint_of(const std::string& onnxruntime, const std::string& machine,
                                                  std::string_view cpuinfo) {
  std::set<std::string> flags;
  for (const char* field : {"flags", "Features"}) {
    std::istringstream words{std::string(value_of(cpuinfo, field))};
    flags.insert(std::istream_iterator<std::string>(words), {});
  }
  std::string features;
  for (const char* feature : kFeatures) {
    if (flags.count(feature) != 0) features.append(features.empty() ? "" : " ").append(feature);
  }
  const std::string_view processor = value_of(cpuinfo, "model name");
  return {{"onnxruntime", onnxruntime},
          {"machine", machine},
          {"processor", processor.empty() ? "unknown" : std::string(processor)},
          {"features", features}};
}

std::map<std::string, std::string> fingerprint() {
  std::ifstream stream("/proc/cpuinfo");
  const std::string cpuinfo{std::istreambuf_iterator<char>(stream), {}};
  return fingerprint_of(onnxruntime_version(), machine_name(), cpuinfo);
}

}  // namespace rnp
