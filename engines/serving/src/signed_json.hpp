// JSON files that carry a version and the hash of their own values.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "json.hpp"

namespace rnp {

// A kind of file: the key of its hash, and what to do about a bad one.
struct SignedFormat {
  std::string_view hash_key;
  std::string_view remedy;
};

inline constexpr SignedFormat kManifestFormat{"manifest_sha256", "export the bundle again"};
inline constexpr SignedFormat kEnginesFormat{"engines_sha256", "build the engine set again with rnp-build"};

struct SignedJson {
  Json value;
  bool newer = false;  // of a later minor version than 1.0
  std::string bytes_sha256;
};

// Size, JSON, version, hash of the values, and the paths under `files`. The file is a plain one of `root`.
// Throws Error: kUnreadable, kJson, kVersion, kValuesHash, kPath, kLink.
SignedJson read_signed(const std::filesystem::path& root, const std::string& name, const SignedFormat& form);

// Whether the minor version is newer than 1.0's. Throws Error(kVersion).
bool is_newer(const Json& value, const std::string& where, const SignedFormat& form);

}  // namespace rnp
