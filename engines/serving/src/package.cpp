#include "rnp/package.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "engine_set_reading.hpp"
#include "files.hpp"
#include "json.hpp"
#include "manifest_fit.hpp"
#include "manifest_reading.hpp"
#include "plan.hpp"
#include "signed_json.hpp"

namespace rnp {

namespace {

constexpr const char* kManifestFile = "manifest.json";
constexpr const char* kEnginesFile = "engines.json";

struct BundleManifest {
  Manifest manifest;
  std::string bytes_sha256;
};

// Whether a directory claims to be one; that engines.json is a link is found out when it is read.
bool is_engine_set(const std::filesystem::path& directory) {
  std::error_code refused;
  return std::filesystem::is_regular_file(directory / kEnginesFile, refused);
}

// Refuses a directory without a plain file `name`, before that is read.
void check_plain(const std::filesystem::path& directory, const char* name, const std::string& otherwise) {
  const std::string shown = directory.string();
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(directory, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    throw Error(ErrorCode::kMissing, shown + " does not exist");
  }
  if (status.type() == std::filesystem::file_type::none) {
    throw Error(ErrorCode::kUnreadable, shown + " cannot be read: " + error.message());
  }
  const Found found = what_lies_at(directory / name);
  if (found == Found::kLink) {
    throw Error(ErrorCode::kLink, (directory / name).string() + " is a link; only plain files are read");
  }
  if (found != Found::kFile) throw Error(ErrorCode::kMissing, shown + " is " + otherwise);
}

// Files are opened later too, perhaps from another working directory.
std::filesystem::path absolute_of(const std::filesystem::path& given) {
  if (given.empty()) return given;  // does not exist
  std::error_code refused;
  std::filesystem::path directory = std::filesystem::absolute(given, refused);
  if (refused) throw Error(ErrorCode::kUnreadable, given.string() + " cannot be read: " + refused.message());
  return directory;
}

EngineSetManifest read_engines(const std::filesystem::path& directory) {
  check_plain(directory, kEnginesFile, "not an engine set: there is no engines.json; rnp-build writes one");
  const SignedJson read = read_signed(directory, kEnginesFile, kEnginesFormat);
  return engine_set_from_json(read.value, (directory / kEnginesFile).string(), read.newer);
}

BundleManifest read_manifest(const std::filesystem::path& directory) {
  check_plain(directory, kManifestFile, "not a bundle: there is no manifest.json; rnp-export writes one");
  const SignedJson read = read_signed(directory, kManifestFile, kManifestFormat);
  return {manifest_from_json(read.value, (directory / kManifestFile).string(), read.newer), read.bytes_sha256};
}

}  // namespace

struct Package::Impl {
  std::filesystem::path directory;
  Manifest manifest;
  Plan own_plan;  // where there is no engine set
  std::optional<EngineSetManifest> engines;
  std::map<std::string, FileManifest> files;    // of what is run, by path
  std::map<std::string, FileIdentity> on_disk;  // files that are not read through `read_verified`, when hashed

  const Plan& plan() const noexcept { return engines ? engines->plan : own_plan; }

  // In the order listed; those that pieces name, or that are graphs, are hashed again when they are opened.
  void verify_files(const std::vector<FileManifest>& listed) {
    std::set<std::string_view> pieces;
    for (const Step& step : plan().steps) {
      for (const Piece& piece : step.pieces) pieces.insert(piece.file);
    }
    for (const FileManifest& file : listed) {
      files.emplace(file.path, file);
      if (engines && pieces.count(file.path) != 0) {
        sized(directory, file);
        continue;
      }
      const FileIdentity identity = verified(directory, file);
      if (engines || !is_graph(file.path)) on_disk.emplace(file.path, identity);
    }
  }
};

Package::Package(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Package Package::open(const std::filesystem::path& given) {
  if (given.native().find('\0') != std::string::npos) {
    throw Error(ErrorCode::kMissing, json_quoted(given.native()) + " is no path");
  }
  const std::filesystem::path directory = absolute_of(given);
  auto impl = std::make_shared<Impl>();
  impl->directory = directory;
  if (!is_engine_set(directory)) {
    impl->manifest = read_manifest(directory).manifest;
    impl->own_plan = plan_of_bundle(impl->manifest);
    impl->verify_files(impl->manifest.files);
    return Package(std::move(impl));
  }
  impl->engines = read_engines(directory);
  BundleManifest bundle = read_manifest(directory);
  const std::string file = (directory / kEnginesFile).string();
  const std::string remedy = "; " + std::string(kEnginesFormat.remedy);
  if (bundle.bytes_sha256 != impl->engines->bundle_sha256) {
    throw Error(ErrorCode::kOtherBundle, (directory / kManifestFile).string() + " is of another bundle" + remedy);
  }
  impl->manifest = std::move(bundle.manifest);
  try {
    check_plan(impl->engines->plan, impl->manifest);
  } catch (const Error& err) {
    throw Error(err.code(), file + ": " + err.what() + remedy);
  }
  impl->verify_files(impl->engines->files);
  return Package(std::move(impl));
}

Package Package::in_memory(Manifest manifest, Plan plan) {
  auto impl = std::make_shared<Impl>();
  impl->manifest = std::move(manifest);
  impl->own_plan = std::move(plan);
  return Package(std::move(impl));
}

const std::filesystem::path& Package::directory() const noexcept { return impl_->directory; }
const Manifest& Package::manifest() const noexcept { return impl_->manifest; }
const Plan& Package::plan() const noexcept { return impl_->plan(); }
const EngineSetManifest* Package::engine_set() const noexcept { return impl_->engines ? &*impl_->engines : nullptr; }

std::string Package::read_verified(const std::string& path) const {
  const auto file = impl_->files.find(path);
  if (file == impl_->files.end()) {
    throw Error(ErrorCode::kMissing, json_quoted(path) + " is no file of this package; take a name from its plan");
  }
  return rnp::read_verified(impl_->directory, file->second);
}

void Package::check_unchanged() const {
  for (const auto& [path, identity] : impl_->on_disk) {
    if (!(file_identity(impl_->directory / path) == identity)) {
      throw Error(ErrorCode::kChanged, (impl_->directory / path).string() + " was replaced after loading; load the " +
                                           (impl_->engines ? "engine set" : "bundle") + " again");
    }
  }
}

void Package::check_files() const {
  for (const auto& [path, file] : impl_->files) verified(impl_->directory, file);
}

}  // namespace rnp
