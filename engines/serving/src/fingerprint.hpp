// What an engine set of ONNX Runtime holds for: this runtime on this processor.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace rnp {

// As platform.machine() and platform.system() of Python, such as "x86_64" and "Linux".
std::string machine_name();
std::string system_name();

// Name → value: onnxruntime, machine, processor, features. The text of /proc/cpuinfo.
std::map<std::string, std::string> fingerprint_of(const std::string& onnxruntime, const std::string& machine,
                                                  std::string_view cpuinfo);
// Of this process.
std::map<std::string, std::string> fingerprint();

}  // namespace rnp
