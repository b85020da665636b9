// Checked values out of parsed JSON. A reader that is given what it does not take throws Error(kFields), which says
// where in the file.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "json.hpp"

namespace rnp {

// A value and its place. It refers to the one that it lies in, and to the JSON, which have to outlive it.
class Field {
 public:
  // The top level of `file`. Newer: of a later minor version, whose objects may have keys that are not known here.
  Field(const Json& value, const std::string& file, bool newer) : value_(&value), file_(&file), newer_(newer) {}

  bool is_null() const noexcept { return value_->is_null(); }
  bool newer() const noexcept { return newer_; }
  const Json& value() const noexcept { return *value_; }

  bool boolean() const;
  std::int64_t integer(std::int64_t least, std::int64_t most) const;
  double number() const;  // finite; an integer is one too
  const std::string& text() const;
  // The index of the name.
  std::size_t one_of(std::initializer_list<std::string_view> names) const;

  Field member(const std::string& key, const Json& value) const { return {value, *this, key, 0}; }
  Field element(std::size_t index, const Json& value) const { return {value, *this, {}, index}; }

  [[noreturn]] void refuse(const std::string& why) const;

 private:
  Field(const Json& value, const Field& above, std::string_view key, std::size_t index)
      : value_(&value), file_(above.file_), above_(&above), key_(key), index_(index), newer_(above.newer_) {}

  std::string place() const;

  const Json* value_;
  const std::string* file_;
  const Field* above_ = nullptr;
  std::string_view key_;   // in an object
  std::size_t index_ = 0;  // in a list
  bool newer_;
};

// The keys of an object; each that is asked for is known.
class Members {
 public:
  explicit Members(const Field& field);
  explicit Members(Field&&) = delete;  // it has to outlive this

  // Throws where it is not there.
  Field operator[](std::string_view key);
  std::optional<Field> find(std::string_view key);
  // Refuses keys that nobody asked for, unless the file is newer.
  void close() const;

 private:
  const Field& field_;
  std::vector<std::string_view> known_;
};

std::int64_t count_of(const Field& field);                        // 0..2^63-1
std::int64_t size_of(const Field& field);                         // 1..2^31-1
double number_of(const Field& field);                             // finite
std::string text_of(const Field& field);                          // any
std::string sha256_of(const Field& field);                        // 64 lower case digits
std::map<std::string, std::string> names_of(const Field& field);  // an object of strings

template <class Read>
auto list_of(const Field& field, Read read, std::size_t least = 0, std::size_t most = SIZE_MAX) {
  const Json::Array* array = field.value().array();
  if (array == nullptr) field.refuse("is no list");
  if (array->size() < least || array->size() > most) field.refuse("has " + std::to_string(array->size()) + " elements");
  std::vector<std::decay_t<decltype(read(field))>> values;
  values.reserve(array->size());
  for (std::size_t i = 0; i < array->size(); ++i) values.push_back(read(field.element(i, (*array)[i])));
  return values;
}

// None where the value is null.
template <class Read>
auto unless_null(const Field& field, Read read) -> std::optional<std::decay_t<decltype(read(field))>> {
  if (field.is_null()) return std::nullopt;
  return read(field);
}

// None where it is null or not there.
template <class Read>
auto unless_null(const std::optional<Field>& field, Read read) -> std::optional<std::decay_t<decltype(read(*field))>> {
  if (!field) return std::nullopt;
  return unless_null(*field, read);
}

template <class Read, class Value>
Value value_or(const std::optional<Field>& field, Read read, Value otherwise) {
  return field ? Value(read(*field)) : otherwise;
}

}  // namespace rnp
