// Files of a bundle or engine set: inside its directory, plain, and as they were written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "rnp/manifest.hpp"

namespace rnp {

// What changes when a file is replaced or written to; all 0 where there is none.
struct FileIdentity {
  std::uint64_t device = 0, inode = 0, bytes = 0;
  std::int64_t modified_s = 0, modified_ns = 0;
  std::int64_t changed_s = 0, changed_ns = 0;  // also where the time of writing was put back

  bool operator==(const FileIdentity& other) const noexcept;
};

FileIdentity file_identity(const std::filesystem::path& file) noexcept;

// What lies under a path itself, links not followed.
enum class Found { kNothing, kFile, kDirectory, kLink, kOther };
// Throws Error(kUnreadable) where the file system does not tell.
Found what_lies_at(const std::filesystem::path& path);

// The bytes of a plain file. Throws Error: kUnreadable, or kJson where it is larger than JSON may be.
std::string read_json_bytes(const std::filesystem::path& file);

// The file that a listed path names, inside `root` and behind no link. Throws Error: kPath, kLink, kUnreadable.
std::filesystem::path confined(const std::filesystem::path& root, const std::string& listed);

// A listed file of the recorded size; nothing is opened. Throws as `confined`, and kFileMissing, kFileSize.
std::filesystem::path sized(const std::filesystem::path& root, const FileManifest& file);

// Checks size and hash; the identity is that of the bytes which were hashed. Throws as `sized`, and kFileHash.
FileIdentity verified(const std::filesystem::path& root, const FileManifest& file);

// The bytes that were hashed. Throws as `verified`.
std::string read_verified(const std::filesystem::path& root, const FileManifest& file);

}  // namespace rnp
