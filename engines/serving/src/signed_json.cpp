#include "signed_json.hpp"

#include <algorithm>
#include <string>

#include "files.hpp"
#include "rnp/error.hpp"
#include "sha256.hpp"

namespace rnp {

namespace {

const Json* member(const Json& value, std::string_view key) {
  const Json::Object* object = value.object();
  if (object == nullptr) return nullptr;
  const auto found = object->find(key);
  return found == object->end() ? nullptr : &found->second;
}

// Of 1 to 5 digits; -1 for anything else.
int small_number(std::string_view digits) {
  if (digits.empty() || digits.size() > 5) return -1;
  int number = 0;
  for (const char digit : digits) {
    if (digit < '0' || digit > '9') return -1;
    number = 10 * number + (digit - '0');
  }
  return number;
}

void check_paths(const std::filesystem::path& root, const Json& value) {
  const Json* files = member(value, "files");
  if (files == nullptr || files->array() == nullptr) return;  // refused with the other fields
  for (const Json& file : *files->array()) {
    const Json* path = member(file, "path");
    if (path != nullptr && path->text() != nullptr) confined(root, *path->text());
  }
}

}  // namespace

bool is_newer(const Json& value, const std::string& where, const SignedFormat& form) {
  const Json* version = member(value, "format_version");
  const std::string text = version == nullptr || version->text() == nullptr ? "" : *version->text();
  const std::size_t dot = std::min(text.find('.'), text.size());
  const int major = small_number(std::string_view(text).substr(0, dot));
  const int minor = dot == text.size() ? -1 : small_number(std::string_view(text).substr(dot + 1));
  if (major < 0 || minor < 0) {
    throw Error(ErrorCode::kVersion, where + ": format_version is " + json_quoted(text) + "; expected 1.0");
  }
  if (major != 1) {
    throw Error(ErrorCode::kVersion, where + ": format " + text +
                                         " is not read by this version, which reads 1.x; use " +
                                         "the rnp-deploy that wrote it, or " + std::string(form.remedy));
  }
  return minor > 0;
}

SignedJson read_signed(const std::filesystem::path& root, const std::string& name, const SignedFormat& form) {
  const std::filesystem::path file = root / name;
  const std::string where = file.string();
  SignedJson read;
  {
    const std::string bytes = read_json_bytes(file);
    read.value = parse_json(bytes, where);
    read.bytes_sha256 = sha256_hex(bytes);
  }
  read.newer = is_newer(read.value, where, form);
  const Json* recorded = member(read.value, form.hash_key);
  if (recorded == nullptr || recorded->text() == nullptr ||
      *recorded->text() != canonical_sha256(read.value, form.hash_key)) {
    throw Error(ErrorCode::kValuesHash,
                where + ": its values are not those it was written with; copy it anew, or " + std::string(form.remedy));
  }
  check_paths(root, read.value);
  return read;
}

}  // namespace rnp
