// A bundle or an engine set on disk, checked before anything in it is parsed.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "rnp/error.hpp"
#include "rnp/manifest.hpp"

namespace rnp {

enum class Device { kAuto, kCpu, kCuda };

// Why a package cannot be run, or runs otherwise than hoped.
struct Diagnostic {
  enum class Severity { kWarning, kError };
  Severity severity = Severity::kError;
  ErrorCode code = ErrorCode::kMismatch;
  std::string message;  // what is wrong, and where
  std::string remedy;   // what to do
};

// Immutable; copies share one value, from any thread.
class Package {
 public:
  // Opens a directory: version, the manifest's own hash, paths, fields, then size and sha256 of every file
  // (of an engine set's engines the size; their sha256 when each is opened). No graph or plan is parsed.
  // Throws Error.
  static Package open(const std::filesystem::path& directory);

  // Of a controller over engines of the caller's: no files, so that read_verified throws Error(kMissing). The plan has
  // to fit the manifest, as that of an opened package does; it is not checked.
  static Package in_memory(Manifest manifest, Plan plan);

  // Empty for one in memory.
  const std::filesystem::path& directory() const noexcept;
  const Manifest& manifest() const noexcept;
  // What is run, step by step: an engine set's own plan, or the bundle's graphs as they are.
  const Plan& plan() const noexcept;
  // Null for a bundle.
  const EngineSetManifest* engine_set() const noexcept;

  // What keeps it from running here with this build of the library, the worst first; empty: nothing.
  // Hashes nothing anew and opens no engine. Does not throw but for want of memory.
  std::vector<Diagnostic> check(Device device = Device::kAuto) const;

  // The bytes of a listed graph or engine, verified as they are read. Throws Error (kFileHash and the like).
  std::string read_verified(const std::string& path) const;

  // Refuses shared files, such as weights.bin, that were replaced after they were hashed. Throws Error(kChanged).
  void check_unchanged() const;

  // Hashes every file again, engines too. Throws Error.
  void check_files() const;

 private:
  struct Impl;
  explicit Package(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace rnp
