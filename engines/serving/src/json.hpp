// JSON as manifests are written: strict, bounded, and in one canonical form that is hashed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace rnp {

// A file that is larger is not read, a value that is nested deeper is not parsed.
inline constexpr std::uint64_t kMaxJsonBytes = std::uint64_t{64} << 20;
inline constexpr std::size_t kMaxJsonDepth = 32;

// A value. Integers and floats are told apart as they were written: 1 and 1.0 differ.
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json, std::less<>>;

  Json() noexcept;  // null
  explicit Json(bool value) noexcept;
  explicit Json(std::int64_t value) noexcept;
  explicit Json(double value) noexcept;
  explicit Json(std::string value);
  explicit Json(Array value);
  explicit Json(Object value);
  Json(Json&&) noexcept;
  Json& operator=(Json&&) noexcept;
  Json(const Json&) = delete;
  Json& operator=(const Json&) = delete;
  ~Json();

  bool is_null() const noexcept;
  // Null where the value is of another kind.
  const bool* boolean() const noexcept;
  const std::int64_t* integer() const noexcept;
  const double* real() const noexcept;
  const std::string* text() const noexcept;
  const Array* array() const noexcept;
  const Object* object() const noexcept;
  Array* array() noexcept;
  Object* object() noexcept;

  // The same kinds, the same values; 0.0 and -0.0 are told apart, as the canonical form does.
  bool operator==(const Json& other) const;

 private:
  // Through pointers, so that an element of a long list takes 16 bytes.
  std::variant<std::monostate, bool, std::int64_t, double, std::unique_ptr<std::string>, std::unique_ptr<Array>,
               std::unique_ptr<Object>>
      value_;
};

// One object in strict UTF-8: no byte order mark, no NUL, no key twice, integers of 64 bits, finite floats.
// Throws Error(kJson), which begins with `where`.
Json parse_json(std::string_view text, const std::string& where);

// Keys sorted, no white space, UTF-8 not escaped, numbers as Python's json writes them; what is hashed.
std::string canonical_json(const Json& value);

// The hash of the canonical form of an object without one of its keys.
std::string canonical_sha256(const Json& object, std::string_view without);

// A string as the canonical form has it, with its quotes: also what messages show of names from files.
std::string json_quoted(std::string_view text);

}  // namespace rnp
