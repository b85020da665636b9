// A bundle of one decision with two options, and its engine set, as text that
// tests change and sign anew.
#pragma once

#include <filesystem>
#include <string>

#include "json.hpp"

namespace rnp::test {

// A folder that is removed with its contents.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const noexcept { return path_; }

 private:
  std::filesystem::path path_;
};

// Without the hash of its values. Files hold their own names.
Json sample_manifest();
Json sample_engines();

void write_file(const std::filesystem::path& file, const std::string& bytes);

// Signs and writes a manifest, or engines; returns the bytes.
std::string save_manifest(const std::filesystem::path& folder, Json manifest);
std::string save_engines(const std::filesystem::path& folder, Json engines);

// All of it.
void save_bundle(const std::filesystem::path& folder, Json manifest = sample_manifest());
// With the bundle's manifest beside it, whose hash is put in.
void save_engine_set(const std::filesystem::path& folder, Json engines = sample_engines());

// The value at a place such as "stages/1/branches/0/macs".
Json& at(Json& value, const std::string& place);

}  // namespace rnp::test
