#include "fields.hpp"

#include <algorithm>
#include <limits>

#include "rnp/error.hpp"

namespace rnp {

bool Field::boolean() const {
  const bool* value = value_->boolean();
  if (value == nullptr) refuse("is neither true nor false");
  return *value;
}

std::int64_t Field::integer(std::int64_t least, std::int64_t most) const {
  const std::int64_t* value = value_->integer();
  if (value == nullptr) refuse("is no integer");
  if (*value < least || *value > most) {
    refuse("is " + std::to_string(*value) + ", not in " + std::to_string(least) + ".." + std::to_string(most));
  }
  return *value;
}

double Field::number() const {
  if (const std::int64_t* integer = value_->integer()) return static_cast<double>(*integer);
  const double* value = value_->real();
  if (value == nullptr) refuse("is no number");
  return *value;
}

const std::string& Field::text() const {
  const std::string* value = value_->text();
  if (value == nullptr) refuse("is no string");
  return *value;
}

std::size_t Field::one_of(std::initializer_list<std::string_view> names) const {
  const std::string& value = text();
  const auto* found = std::find(names.begin(), names.end(), value);
  if (found != names.end()) return static_cast<std::size_t>(found - names.begin());
  std::string known;
  for (const std::string_view name : names) known.append(known.empty() ? "" : ", ").append(name);
  refuse("is " + json_quoted(value) + ", not one of " + known);
}

void Field::refuse(const std::string& why) const {
  throw Error(ErrorCode::kFields, *file_ + ": " + (above_ == nullptr ? "" : place() + " ") + why);
}

std::string Field::place() const {
  std::string own = std::to_string(index_);
  if (key_.data() != nullptr) {
    own = json_quoted(key_);  // no control characters in messages
    own = own.substr(1, own.size() - 2);
  }
  return above_->above_ == nullptr ? own : above_->place() + "." + own;
}

Members::Members(const Field& field) : field_(field) {
  if (field.value().object() == nullptr) field.refuse("is no object");
}

Field Members::operator[](std::string_view key) {
  const std::optional<Field> member = find(key);
  if (!member) field_.refuse("lacks " + std::string(key));
  return *member;
}

std::optional<Field> Members::find(std::string_view key) {
  known_.push_back(key);
  const Json::Object& object = *field_.value().object();
  const auto found = object.find(key);
  if (found == object.end()) return std::nullopt;
  return field_.member(found->first, found->second);
}

void Members::close() const {
  if (field_.newer()) return;
  for (const auto& [key, value] : *field_.value().object()) {
    if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
      field_.refuse("has the key " + json_quoted(key) + ", which the format does not know");
    }
  }
}

std::int64_t count_of(const Field& field) { return field.integer(0, std::numeric_limits<std::int64_t>::max()); }

std::int64_t size_of(const Field& field) { return field.integer(1, std::numeric_limits<std::int32_t>::max()); }

double number_of(const Field& field) { return field.number(); }

std::string text_of(const Field& field) { return field.text(); }

std::string sha256_of(const Field& field) {
  const std::string& text = field.text();
  if (text.size() != 64 || text.find_first_not_of("0123456789abcdef") != std::string::npos) {
    field.refuse("is no sha256: 64 digits in lower case");
  }
  return text;
}

std::map<std::string, std::string> names_of(const Field& field) {
  const Json::Object* object = field.value().object();
  if (object == nullptr) field.refuse("is no object");
  std::map<std::string, std::string> names;
  for (const auto& [key, value] : *object) names.emplace(key, field.member(key, value).text());
  return names;
}

}  // namespace rnp
