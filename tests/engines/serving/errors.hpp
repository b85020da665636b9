// Errors as words, for tables.
#pragma once

#include <ostream>
#include <string>
#include <utility>

#include "rnp/error.hpp"

namespace rnp::testing {

// The code and message of what was thrown. Compared with "code: words", it is
// equal where the code is the same and the words are in the message.
class Thrown {
 public:
  Thrown(std::string code, std::string message) : code_(std::move(code)), message_(std::move(message)) {}

  friend bool operator==(const Thrown& thrown, const std::string& wanted) {
    const std::size_t colon = wanted.find(": ");
    return thrown.code_ == wanted.substr(0, colon) &&
           thrown.message_.find(wanted.substr(colon + 2)) != std::string::npos;
  }
  friend std::ostream& operator<<(std::ostream& out, const Thrown& thrown) {
    return out << thrown.code_ << ": " << thrown.message_;
  }

 private:
  std::string code_, message_;
};

template <typename Call>
Thrown error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return {std::string(name_of(error.code())), error.what()};
  }
  return {"nothing", "was thrown"};
}

}  // namespace rnp::testing
