#include "json.hpp"

#include <charconv>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "rnp/error.hpp"
#include "sha256.hpp"

namespace rnp {

Json::Json() noexcept = default;
Json::Json(bool value) noexcept : value_(value) {}
Json::Json(std::int64_t value) noexcept : value_(value) {}
Json::Json(double value) noexcept : value_(value) {}
Json::Json(std::string value) : value_(std::make_unique<std::string>(std::move(value))) {}
Json::Json(Array value) : value_(std::make_unique<Array>(std::move(value))) {}
Json::Json(Object value) : value_(std::make_unique<Object>(std::move(value))) {}
Json::Json(Json&&) noexcept = default;
Json& Json::operator=(Json&&) noexcept = default;
Json::~Json() = default;

namespace {

template <class T, class Variant>
auto* pointee(Variant& value) noexcept {
  auto* held = std::get_if<std::unique_ptr<T>>(&value);
  return held == nullptr ? nullptr : held->get();
}

}  // namespace

bool Json::is_null() const noexcept { return std::holds_alternative<std::monostate>(value_); }
const bool* Json::boolean() const noexcept { return std::get_if<bool>(&value_); }
const std::int64_t* Json::integer() const noexcept { return std::get_if<std::int64_t>(&value_); }
const double* Json::real() const noexcept { return std::get_if<double>(&value_); }
const std::string* Json::text() const noexcept { return pointee<std::string>(value_); }
const Json::Array* Json::array() const noexcept { return pointee<Array>(value_); }
const Json::Object* Json::object() const noexcept { return pointee<Object>(value_); }
Json::Array* Json::array() noexcept { return pointee<Array>(value_); }
Json::Object* Json::object() noexcept { return pointee<Object>(value_); }

bool Json::operator==(const Json& other) const {
  if (value_.index() != other.value_.index()) return false;
  if (text() != nullptr) return *text() == *other.text();
  if (array() != nullptr) return *array() == *other.array();
  if (object() != nullptr) return *object() == *other.object();
  if (real() != nullptr) return *real() == *other.real() && std::signbit(*real()) == std::signbit(*other.real());
  return value_ == other.value_;
}

namespace {

// Takes what nlohmann's parser finds and builds values; a false answer ends the parse with `fault`.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return add(Json()); }
  bool boolean(bool value) override { return add(Json(value)); }
  bool number_integer(number_integer_t value) override { return add(Json(std::int64_t{value})); }

  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) return stop("an integer is out of range");
    return add(Json(static_cast<std::int64_t>(value)));
  }

  bool number_float(number_float_t value, const string_t& written) override {
    // The parser hands integers that are too long over as floats. It may write the point as the locale does.
    if (written.find_first_not_of("-0123456789") == std::string::npos) return stop("an integer is out of range");
    if (!std::isfinite(value)) return stop("a number is out of range");
    return add(Json(double{value}));
  }

  bool string(string_t& value) override { return add(Json(std::move(value))); }
  bool binary(binary_t& /*value*/) override { return stop("it holds bytes"); }
  bool start_object(std::size_t /*elements*/) override { return open(Json(Json::Object())); }
  bool start_array(std::size_t /*elements*/) override { return open(Json(Json::Array())); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& value) override {
    if (open_.back().value.object()->count(value) != 0) return stop("a key stands twice in one object");
    open_.back().key = std::move(value);
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*last*/, const nlohmann::detail::exception& err) override {
    // 406: a number that no double holds.
    return stop(err.id == 406 ? "a number is out of range" : "it is no JSON at byte " + std::to_string(position));
  }

  Json& value() { return done_; }
  const std::string& fault() const { return fault_; }

 private:
  struct Open {
    Json value;
    std::string key;  // of the member that comes next, in an object
  };

  bool open(Json value) {
    if (open_.size() == kMaxJsonDepth) return stop("it is nested too deeply");
    if (open_.empty() && value.object() == nullptr) return stop("the top level is not an object");
    open_.push_back({std::move(value), {}});
    return true;
  }

  bool close() {
    Json value = std::move(open_.back().value);
    open_.pop_back();
    if (open_.empty()) {
      done_ = std::move(value);
      return true;
    }
    return add(std::move(value));
  }

  bool add(Json value) {
    if (open_.empty()) return stop("the top level is not an object");
    Open& inner = open_.back();
    if (Json::Array* array = inner.value.array()) {
      array->push_back(std::move(value));
    } else {
      inner.value.object()->emplace(std::move(inner.key), std::move(value));
    }
    return true;
  }

  bool stop(std::string why) {
    fault_ = std::move(why);
    return false;
  }

  std::vector<Open> open_;
  Json done_;
  std::string fault_;
};

void write_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\b':
        out += "\\b";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += "\\u00";
          out += "0123456789abcdef"[static_cast<unsigned char>(c) >> 4];
          out += "0123456789abcdef"[c & 15];
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

// As Python's repr: the shortest digits that read back, positional where the decimal exponent is in -4..15.
void write_real(std::string& out, double value) {
  char text[40];
  const char* end = std::to_chars(text, text + sizeof text, value, std::chars_format::scientific).ptr;
  const char* mark = static_cast<const char*>(std::memchr(text, 'e', static_cast<std::size_t>(end - text)));
  const char* first = text;
  if (*first == '-') out += *first++;
  std::string digits;
  for (const char* c = first; c != mark; ++c) {
    if (*c != '.') digits += *c;
  }
  int exponent = 0;
  std::from_chars(mark[1] == '+' ? mark + 2 : mark + 1, end, exponent);

  if (exponent < -4 || exponent >= 16) {
    out.append(first, end);  // to_chars gives the exponent a sign and two digits at least, as Python does
  } else if (exponent < 0) {
    out.append("0.").append(static_cast<std::size_t>(-exponent - 1), '0').append(digits);
  } else {
    const auto whole = static_cast<std::size_t>(exponent) + 1;
    if (digits.size() < whole) digits.append(whole - digits.size(), '0');
    out.append(digits, 0, whole).append(".");
    out.append(digits.size() > whole ? digits.substr(whole) : "0");
  }
}

void write(std::string& out, const Json& value);

void write_members(std::string& out, const Json::Object& object, const std::string_view* without) {
  out += '{';
  bool first = true;
  for (const auto& [key, member] : object) {
    if (without != nullptr && key == *without) continue;
    if (!first) out += ',';
    first = false;
    write_string(out, key);
    out += ':';
    write(out, member);
  }
  out += '}';
}

void write_elements(std::string& out, const Json::Array& array) {
  out += '[';
  for (std::size_t i = 0; i < array.size(); ++i) {
    if (i > 0) out += ',';
    write(out, array[i]);
  }
  out += ']';
}

void write(std::string& out, const Json& value) {
  if (const bool* truth = value.boolean()) {
    out += *truth ? "true" : "false";
  } else if (const std::int64_t* integer = value.integer()) {
    out += std::to_string(*integer);
  } else if (const double* real = value.real()) {
    write_real(out, *real);
  } else if (const std::string* text = value.text()) {
    write_string(out, *text);
  } else if (const Json::Array* array = value.array()) {
    write_elements(out, *array);
  } else if (const Json::Object* object = value.object()) {
    write_members(out, *object, nullptr);
  } else {
    out += "null";
  }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where) {
  const auto refuse = [&](const std::string& why) { throw Error(ErrorCode::kJson, where + ": " + why); };
  if (text.size() > kMaxJsonBytes) {
    refuse(std::to_string(text.size()) + " bytes; at most " + std::to_string(kMaxJsonBytes) + " are read");
  }
  // The parser skips a byte order mark, and takes a NUL for the end.
  if (text.substr(0, 3) == "\xef\xbb\xbf") refuse("it begins with a byte order mark");
  if (text.find('\0') != std::string_view::npos) refuse("it holds a NUL byte");
  Builder builder;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) refuse(builder.fault());
  return std::move(builder.value());
}

std::string canonical_json(const Json& value) {
  std::string out;
  write(out, value);
  return out;
}

std::string canonical_sha256(const Json& object, std::string_view without) {
  std::string out;
  write_members(out, *object.object(), &without);
  return sha256_hex(out);
}

std::string json_quoted(std::string_view text) {
  std::string out;
  write_string(out, text);
  return out;
}

}  // namespace rnp
