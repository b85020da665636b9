// Checks bundles and engine sets: whether they are whole, and, where a device is named, whether they run on it here.
#include <exception>
#include <filesystem>
#include <iostream>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.hpp"
#include "rnp/package.hpp"

namespace {

constexpr const char* kUsage =
    "usage: rnp_check [--json] [--files] [--device auto|cpu|cuda] PATH...\n"
    "  PATH      a bundle or an engine set; - reads paths from standard input, one a line\n"
    "  --json    one JSON object a path and line: path, code, message, diagnostics\n"
    "  --files   hash every file, also an engine set's engines, which are otherwise hashed when they are opened\n"
    "  --device  where it is to run\n"
    "exit status: 0 all are good, 1 one is not, or cannot run here, 2 wrong usage\n";

struct Arguments {
  bool json = false, files = false;
  rnp::Device device = rnp::Device::kAuto;
  std::vector<std::string> paths;
};

struct Verdict {
  std::string code = "ok", message;
  std::vector<rnp::Diagnostic> diagnostics;
};

std::optional<rnp::Device> device_of(std::string_view name) {
  if (name == "auto") return rnp::Device::kAuto;
  if (name == "cpu") return rnp::Device::kCpu;
  if (name == "cuda") return rnp::Device::kCuda;
  return std::nullopt;
}

std::optional<Arguments> arguments_of(int count, char** values) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string_view value = values[i];
    if (value == "--json") {
      arguments.json = true;
    } else if (value == "--device" && i + 1 < count) {
      const std::optional<rnp::Device> device = device_of(values[++i]);
      if (!device) return std::nullopt;
      arguments.device = *device;
    } else if (value == "--files") {
      arguments.files = true;
    } else if (value.size() > 1 && value.front() == '-') {
      return std::nullopt;
    } else {
      arguments.paths.emplace_back(value);
    }
  }
  if (arguments.paths.empty()) return std::nullopt;
  return arguments;
}

Verdict verdict_of(const std::string& path, const Arguments& arguments) {
  Verdict verdict;
  try {
    const rnp::Package package = rnp::Package::open(path);
    if (arguments.files) package.check_files();
    verdict.diagnostics = package.check(arguments.device);
  } catch (const rnp::Error& err) {
    verdict.code = rnp::name_of(err.code());
    verdict.message = err.what();
  } catch (const std::bad_alloc&) {
    verdict.code = rnp::name_of(rnp::ErrorCode::kMemory);
    verdict.message = "memory is exhausted";
  } catch (const std::exception& err) {
    verdict.code = rnp::name_of(rnp::ErrorCode::kInternal);
    verdict.message = err.what();
  }
  return verdict;
}

// A string of JSON. Bytes that are no UTF-8 become halves of surrogate pairs, as Python has them in file names.
std::string json_string(const std::string& bytes) {
  std::string text = rnp::json_quoted(bytes);
  try {
    (void)rnp::parse_json("{\"\":" + text + "}", "");
    return text;
  } catch (const rnp::Error&) {
    std::string escaped;
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte < 0x80) {
        escaped += c;
      } else {
        escaped.append("\\udc") += "0123456789abcdef"[byte >> 4];
        escaped += "0123456789abcdef"[byte & 15];
      }
    }
    return escaped;
  }
}

const char* severity_of(const rnp::Diagnostic& diagnostic) {
  return diagnostic.severity == rnp::Diagnostic::Severity::kError ? "error" : "warning";
}

void print_json(const std::string& path, const Verdict& verdict) {
  std::cout << "{\"path\":" << json_string(path) << ",\"code\":\"" << verdict.code
            << "\",\"message\":" << json_string(verdict.message) << ",\"diagnostics\":[";
  const char* comma = "";
  for (const rnp::Diagnostic& each : verdict.diagnostics) {
    std::cout << comma << "{\"severity\":\"" << severity_of(each) << "\",\"code\":\"" << rnp::name_of(each.code)
              << "\",\"message\":" << json_string(each.message) << ",\"remedy\":" << json_string(each.remedy) << "}";
    comma = ",";
  }
  std::cout << "]}" << std::endl;  // whoever reads a line at a time gets it now
}

bool runs_here(const Verdict& verdict) {
  for (const rnp::Diagnostic& each : verdict.diagnostics) {
    if (each.severity == rnp::Diagnostic::Severity::kError) return false;
  }
  return true;
}

void print_text(const std::string& path, const Verdict& verdict) {
  std::cout << path << ": " << verdict.code << (runs_here(verdict) ? "" : ", but it cannot run here") << '\n';
  if (!verdict.message.empty()) std::cout << "  " << verdict.message << '\n';
  for (const rnp::Diagnostic& each : verdict.diagnostics) {
    std::cout << "  " << severity_of(each) << " (" << rnp::name_of(each.code) << "): " << each.message << "\n    "
              << each.remedy << '\n';
  }
  std::cout.flush();
}

// Whether it is good.
bool check(const std::string& path, const Arguments& arguments) {
  const Verdict verdict = verdict_of(path, arguments);
  arguments.json ? print_json(path, verdict) : print_text(path, verdict);
  return verdict.code == "ok" && runs_here(verdict);
}

}  // namespace

int main(int count, char** values) {
  if (count == 2 && std::string_view(values[1]) == "--help") {
    std::cout << kUsage;
    return 0;
  }
  const std::optional<Arguments> arguments = arguments_of(count, values);
  if (!arguments) {
    std::cerr << kUsage;
    return 2;
  }
  bool good = true;
  for (const std::string& path : arguments->paths) {
    if (path != "-") {
      good = check(path, *arguments) && good;
      continue;
    }
    for (std::string line; std::getline(std::cin, line);) {
      if (!line.empty()) good = check(line, *arguments) && good;
    }
  }
  return good ? 0 : 1;
}
