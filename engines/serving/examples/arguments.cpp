#include "arguments.hpp"

#include <cmath>
#include <locale>
#include <sstream>

#include "rnp/error.hpp"

namespace examples {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw rnp::Error(rnp::ErrorCode::kInput, message); }

}  // namespace

Arguments::Arguments(int argc, const char* const* argv, const std::set<std::string>& valued,
                     const std::set<std::string>& flags) {
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--", 0) != 0) {
      alone_.push_back(word);
      continue;
    }
    const std::string name = word.substr(2);
    if (!valued.count(name) && !flags.count(name)) refuse(word + " is no option; see --help");
    if (values_.count(name)) refuse(word + " is given twice");
    if (flags.count(name)) {
      values_[name] = "";
    } else if (++i < argc) {
      values_[name] = argv[i];
    } else {
      refuse(word + " needs a value");
    }
  }
}

std::string Arguments::text(const std::string& name, const std::string& otherwise) const {
  const auto found = values_.find(name);
  return found == values_.end() ? otherwise : found->second;
}

long long Arguments::integer(const std::string& name, long long otherwise, long long least, long long most) const {
  const std::optional<double> value = number(name);
  if (!value) return otherwise;
  if (*value != std::floor(*value) || *value < static_cast<double>(least) || *value > static_cast<double>(most)) {
    refuse("--" + name + " is " + values_.at(name) + "; pass an integer, " + std::to_string(least) + " to " +
           std::to_string(most));
  }
  return static_cast<long long>(*value);
}

std::optional<double> Arguments::number(const std::string& name) const {
  const auto found = values_.find(name);
  if (found == values_.end()) return std::nullopt;
  const std::optional<double> value = number_from(found->second);
  if (!value) refuse("--" + name + " is \"" + found->second + "\"; pass a number");
  return value;
}

std::optional<double> number_from(const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double value = 0;
  stream >> std::noskipws >> value;
  if (!stream || stream.peek() != std::istringstream::traits_type::eof() || !std::isfinite(value)) return std::nullopt;
  return value;
}

}  // namespace examples
