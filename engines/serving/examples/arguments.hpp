// Command lines: `--name value`, `--flag`, and what stands alone.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace examples {

class Arguments {
 public:
  // `valued` and `flags` are names without the dashes. Throws rnp::Error(kInput): a name that is unknown, given twice,
  // or without its value.
  Arguments(int argc, const char* const* argv, const std::set<std::string>& valued, const std::set<std::string>& flags);

  const std::vector<std::string>& alone() const noexcept { return alone_; }
  bool has(const std::string& name) const { return values_.count(name) > 0; }
  std::string text(const std::string& name, const std::string& otherwise) const;
  // Throw rnp::Error(kInput): no number, or out of range.
  long long integer(const std::string& name, long long otherwise, long long least, long long most) const;
  std::optional<double> number(const std::string& name) const;

 private:
  std::vector<std::string> alone_;
  std::map<std::string, std::string> values_;
};

// A finite number that is all of the text; none otherwise. Does not look at the locale.
std::optional<double> number_from(const std::string& text);

}  // namespace examples
