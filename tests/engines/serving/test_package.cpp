#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <functional>

#include "plan.hpp"
#include "rnp/package.hpp"
#include "sample_bundle.hpp"
#include "sha256.hpp"

using namespace rnp;
using namespace rnp::test;

namespace fs = std::filesystem;

namespace {

std::string code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& err) {
    return std::string(name_of(err.code()));
  }
  return "ok";
}

std::string code_at(const fs::path& folder) {
  return code_of([&] { Package::open(folder); });
}

void replace(const fs::path& file, const std::string& bytes) {
  fs::remove(file);
  write_file(file, bytes);
}

}  // namespace

TEST_CASE("a bundle is opened, with its plan") {
  const TemporaryFolder folder;
  save_bundle(folder.path());
  const Package package = Package::open(folder.path());
  CHECK(package.directory() == folder.path());
  CHECK(package.engine_set() == nullptr);
  CHECK(package.manifest().decisions.size() == 1);
  CHECK(package.plan().steps.size() == 3);
  CHECK(package.read_verified("stages/01/out1.onnx") == "stages/01/out1.onnx");
  CHECK(code_of([&] { (void)package.read_verified("stages/01/out9.onnx"); }) == "missing");
  package.check_unchanged();
  package.check_files();
}

TEST_CASE("a package stays where it was opened when the working directory changes") {
  const TemporaryFolder folder;
  save_bundle(folder.path());
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  const Package package = Package::open(".");
  fs::current_path(before);
  CHECK(package.directory().is_absolute());
  CHECK(package.read_verified("stages/01/out1.onnx") == "stages/01/out1.onnx");
  package.check_unchanged();
  package.check_files();
  CHECK(code_at("") == "missing");
}

TEST_CASE("an engine set is opened, with its own plan") {
  const TemporaryFolder folder;
  save_engine_set(folder.path());
  const Package package = Package::open(folder.path());
  REQUIRE(package.engine_set() != nullptr);
  CHECK(package.engine_set()->fingerprint.at("machine") == "abacus");
  CHECK(package.plan().steps.size() == 2);
  CHECK(package.read_verified("stages/01/out2.onnx") == "stages/01/out2.onnx");
}

TEST_CASE("what is no bundle") {
  const TemporaryFolder folder;
  CHECK(code_at(folder.path() / "none") == "missing");
  CHECK(code_at(folder.path()) == "missing");
  CHECK(code_at(fs::path(std::string("/\0tmp", 5))) == "missing");
  CHECK(code_at(fs::path(std::string(5000, 'a'))) == "unreadable");
  write_file(folder.path() / "file", "");
  CHECK(code_at(folder.path() / "file") == "missing");
  fs::create_directory(folder.path() / "manifest.json");
  CHECK(code_at(folder.path()) == "missing");
  fs::remove(folder.path() / "manifest.json");
  REQUIRE(mkfifo((folder.path() / "manifest.json").c_str(), 0600) == 0);
  CHECK(code_at(folder.path()) == "missing");
}

TEST_CASE("a manifest that is a link") {
  const TemporaryFolder folder;
  save_bundle(folder.path() / "bundle");
  fs::rename(folder.path() / "bundle/manifest.json", folder.path() / "manifest.json");
  fs::create_symlink(folder.path() / "manifest.json", folder.path() / "bundle/manifest.json");
  CHECK(code_at(folder.path() / "bundle") == "link");
  fs::create_directory_symlink(folder.path() / "bundle", folder.path() / "linked");
  replace(folder.path() / "bundle/manifest.json", "{}");
  CHECK(code_at(folder.path() / "linked") == "version");  // the directory itself may be a link
}

TEST_CASE("a manifest that is not as it was signed") {
  const TemporaryFolder folder;
  save_bundle(folder.path());
  Json manifest = sample_manifest();
  replace(folder.path() / "manifest.json", canonical_json(manifest));
  CHECK(code_at(folder.path()) == "values-hash");
  at(manifest, "manifest_sha256") = Json(std::string(64, '0'));
  replace(folder.path() / "manifest.json", canonical_json(manifest));
  CHECK(code_at(folder.path()) == "values-hash");
  at(manifest, "manifest_sha256") = Json(std::int64_t{7});
  replace(folder.path() / "manifest.json", canonical_json(manifest));
  CHECK(code_at(folder.path()) == "values-hash");
  replace(folder.path() / "manifest.json", "{");
  CHECK(code_at(folder.path()) == "json");
  fs::resize_file(folder.path() / "manifest.json", kMaxJsonBytes + 1);
  CHECK(code_at(folder.path()) == "json");
}

TEST_CASE("versions") {
  const std::pair<const char*, const char*> table[] = {
      {"1.0", "ok"},       {"1.00", "ok"},       {"01.0", "ok"},     {"1.7", "ok"},       {"1.99999", "ok"},
      {"2.0", "version"},  {"0.9", "version"},   {"1", "version"},   {"1.", "version"},   {".1", "version"},
      {"", "version"},     {"1.0.0", "version"}, {"1.a", "version"}, {"1.-1", "version"}, {"1.100000", "version"},
      {" 1.0", "version"}, {"1. 0", "version"},  {"+1.0", "version"}};
  for (const auto& [version, code] : table) {
    const TemporaryFolder folder;
    Json manifest = sample_manifest();
    at(manifest, "format_version") = Json(std::string(version));
    save_bundle(folder.path(), std::move(manifest));
    INFO(version);
    CHECK(code_at(folder.path()) == code);
  }
}

TEST_CASE("keys of a later minor version are let pass, and only then") {
  for (const char* version : {"1.0", "1.1"}) {
    for (const char* place :
         {"new", "agent/new", "stages/0/branches/0/new", "files/0/new", "calibration/points/0/new"}) {
      const TemporaryFolder folder;
      Json manifest = sample_manifest();
      at(manifest, "format_version") = Json(std::string(version));
      at(manifest, place) = Json(true);
      save_bundle(folder.path(), std::move(manifest));
      INFO(version << " " << place);
      CHECK(code_at(folder.path()) == (std::string(version) == "1.0" ? "fields" : "ok"));
    }
  }
}

TEST_CASE("a path is refused before the fields are read") {
  for (const char* hash_key : {"bundle", "engines"}) {
    const TemporaryFolder folder;
    const bool bundle = std::string(hash_key) == "bundle";
    Json json = bundle ? sample_manifest() : sample_engines();
    at(json, "producer") = Json();
    at(json, "files/2/path") = Json(std::string("../secret"));
    bundle ? save_bundle(folder.path(), std::move(json)) : save_engine_set(folder.path(), std::move(json));
    CHECK(code_at(folder.path()) == "path");
  }
}

TEST_CASE("files that are not as listed") {
  struct Case {
    const char* what;
    std::function<void(const fs::path&)> change;
    const char* bundle;
    const char* engine_set;
  };
  const Case table[] = {
      {"engine missing", [](const fs::path& f) { fs::remove(f / "stages/01/out1.onnx"); }, "file-missing",
       "file-missing"},
      {"engine longer", [](const fs::path& f) { replace(f / "stages/01/out1.onnx", "stages/01/out1.onnx."); },
       "file-size", "file-size"},
      {"engine changed", [](const fs::path& f) { replace(f / "stages/01/out1.onnx", "stages/01/out1.onny"); },
       "file-hash", "ok"},
      {"weights changed", [](const fs::path& f) { replace(f / "weights.bin", "weights.bim"); }, "file-hash",
       "file-hash"},
      {"weights shorter", [](const fs::path& f) { replace(f / "weights.bin", ""); }, "file-size", "file-size"},
      {"a folder",
       [](const fs::path& f) {
         fs::remove(f / "weights.bin");
         fs::create_directory(f / "weights.bin");
       },
       "file-size", "file-size"},
      {"a pipe",
       [](const fs::path& f) {
         fs::remove(f / "weights.bin");
         REQUIRE(mkfifo((f / "weights.bin").c_str(), 0600) == 0);
       },
       "file-size", "file-size"},
      {"a link",
       [](const fs::path& f) {
         fs::rename(f / "weights.bin", f / "other");
         fs::create_symlink("other", f / "weights.bin");
       },
       "link", "link"},
      {"a dangling link",
       [](const fs::path& f) {
         fs::remove(f / "weights.bin");
         fs::create_symlink("other", f / "weights.bin");
       },
       "link", "link"},
      {"a folder behind a link",
       [](const fs::path& f) {
         fs::rename(f / "stages", f / "others");
         fs::create_symlink("others", f / "stages");
       },
       "link", "link"},
      {"a file for a folder",
       [](const fs::path& f) {
         fs::remove_all(f / "stages/01");
         write_file(f / "stages/01", "");
       },
       "file-missing", "file-missing"},
  };
  for (const Case& each : table) {
    INFO(each.what);
    const TemporaryFolder folder;
    save_bundle(folder.path() / "bundle");
    save_engine_set(folder.path() / "engines");
    each.change(folder.path() / "bundle");
    each.change(folder.path() / "engines");
    CHECK(code_at(folder.path() / "bundle") == each.bundle);
    CHECK(code_at(folder.path() / "engines") == each.engine_set);
  }
}

TEST_CASE("the first listed file that is bad is told") {
  const TemporaryFolder folder;
  save_bundle(folder.path());
  fs::remove(folder.path() / "stages/01/out2.onnx");
  replace(folder.path() / "stages/01/out1.onnx", "");
  CHECK(code_at(folder.path()) == "file-size");
}

TEST_CASE("an engine set of another bundle, or with a plan that does not fit") {
  const TemporaryFolder folder;
  Json engines = sample_engines();
  at(engines, "plan/steps/1/option_decisions/0") = Json(std::int64_t{1});
  save_engine_set(folder.path(), std::move(engines));
  CHECK(code_at(folder.path()) == "plan");
  Json manifest = sample_manifest();
  at(manifest, "producer") = Json(std::string("other"));
  save_manifest(folder.path(), std::move(manifest));
  CHECK(code_at(folder.path()) == "other-bundle");  // before the plan
  replace(folder.path() / "manifest.json", "[]");
  CHECK(code_at(folder.path()) == "json");
  replace(folder.path() / "engines.json", "[");
  CHECK(code_at(folder.path()) == "json");
  fs::remove(folder.path() / "manifest.json");
  save_engines(folder.path(), sample_engines());
  CHECK(code_at(folder.path()) == "missing");
}

TEST_CASE("engines.json behind a link") {
  const TemporaryFolder folder;
  save_engine_set(folder.path());
  fs::rename(folder.path() / "engines.json", folder.path() / "real");
  fs::create_symlink("real", folder.path() / "engines.json");
  CHECK(code_at(folder.path()) == "link");
  fs::remove(folder.path() / "real");
  CHECK(code_at(folder.path()) == "ok");  // a link to nothing: the bundle beside it is opened
}

TEST_CASE("files that change after they were hashed") {
  const TemporaryFolder folder;
  save_bundle(folder.path() / "bundle");
  save_engine_set(folder.path() / "engines");
  const Package bundle = Package::open(folder.path() / "bundle");
  const Package engines = Package::open(folder.path() / "engines");
  for (const char* name : {"bundle", "engines"}) {
    replace(folder.path() / name / "stages/01/out1.onnx", "stages/01/out1.onny");
  }
  for (const Package& package : {bundle, engines}) {
    package.check_unchanged();  // graphs and engines are hashed when they are read
    CHECK(code_of([&] { (void)package.read_verified("stages/01/out1.onnx"); }) == "file-hash");
    CHECK(code_of([&] { package.check_files(); }) == "file-hash");
    replace(package.directory() / "weights.bin", "weights.bin");
    CHECK(code_of([&] { package.check_unchanged(); }) == "changed");
    fs::remove(package.directory() / "weights.bin");
    CHECK(code_of([&] { package.check_unchanged(); }) == "changed");
  }
}

TEST_CASE("a graph in an engine set that is no engine is a shared file") {
  const TemporaryFolder folder;
  save_engine_set(folder.path());
  const Package package = Package::open(folder.path());
  replace(folder.path() / "agent/step_00.onnx", "agent/step_00.onnx");
  CHECK(code_of([&] { package.check_unchanged(); }) == "changed");
}

TEST_CASE("a package in memory has no files") {
  const TemporaryFolder folder;
  save_bundle(folder.path());
  const Manifest manifest = Package::open(folder.path()).manifest();
  const Package package = Package::in_memory(manifest, plan_of_bundle(manifest));
  CHECK(package.directory().empty());
  CHECK(package.plan().steps.size() == 3);
  CHECK(code_of([&] { (void)package.read_verified("weights.bin"); }) == "missing");
  package.check_unchanged();
}
