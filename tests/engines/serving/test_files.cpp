#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>

#include "files.hpp"
#include "json.hpp"
#include "rnp/error.hpp"
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

FileManifest listed(const std::string& path, const std::string& bytes) {
  return {path, static_cast<std::int64_t>(bytes.size()), sha256_hex(bytes)};
}

}  // namespace

TEST_CASE("sha256 of known texts") {
  CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 parts;
  parts.update("a", 1);
  parts.update("bc", 2);
  CHECK(parts.hex() == sha256_hex("abc"));
}

TEST_CASE("paths that leave the directory") {
  const TemporaryFolder folder;
  for (const std::string path : {"", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", ".", "./a", "a/.", "a//b",
                                 "a/", "//a", "a\\b", "c:a", ":"}) {
    INFO(path);
    CHECK(code_of([&] { confined(folder.path(), path); }) == "path");
  }
  CHECK(code_of([&] { confined(folder.path(), std::string("a\0b", 3)); }) == "path");
  for (const std::string path : {"a", "a/b", "...", "..a/b..", " ", "a b", "-", "~", "\xc3\xa4"}) {
    INFO(path);
    CHECK(confined(folder.path(), path) == folder.path() / path);
  }
  CHECK(code_of([&] { confined(folder.path(), std::string(300, 'a')); }) == "unreadable");
}

TEST_CASE("links are refused wherever they stand") {
  const TemporaryFolder folder;
  write_file(folder.path() / "real/file", "x");
  fs::create_symlink("real", folder.path() / "linked");
  fs::create_symlink("file", folder.path() / "real/link");
  fs::create_symlink("nothing", folder.path() / "dangling");
  CHECK(code_of([&] { confined(folder.path(), "real/file"); }) == "ok");
  CHECK(code_of([&] { confined(folder.path(), "linked/file"); }) == "link");
  CHECK(code_of([&] { confined(folder.path(), "real/link"); }) == "link");
  CHECK(code_of([&] { confined(folder.path(), "dangling"); }) == "link");
}

TEST_CASE("files are verified in chunks and whole") {
  const TemporaryFolder folder;
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, (std::size_t{1} << 20) - 1, std::size_t{1} << 20,
                                 (std::size_t{1} << 20) + 1, std::size_t{3000000}}) {
    std::string bytes(size, 'x');
    write_file(folder.path() / "file", bytes);
    const FileManifest file = listed("file", bytes);
    INFO(size);
    CHECK(verified(folder.path(), file) == file_identity(folder.path() / "file"));
    CHECK(read_verified(folder.path(), file) == bytes);
    if (size == 0) continue;
    bytes.back() = 'y';
    write_file(folder.path() / "file", bytes);
    CHECK(code_of([&] { verified(folder.path(), file); }) == "file-hash");
    CHECK(code_of([&] { (void)read_verified(folder.path(), file); }) == "file-hash");
  }
}

TEST_CASE("sizes are compared before anything is read") {
  const TemporaryFolder folder;
  write_file(folder.path() / "file", "four");
  for (const std::int64_t bytes : {std::int64_t{0}, std::int64_t{3}, std::int64_t{5}, INT64_MAX}) {
    const FileManifest file{"file", bytes, sha256_hex("four")};
    CHECK(code_of([&] { sized(folder.path(), file); }) == "file-size");
    CHECK(code_of([&] { verified(folder.path(), file); }) == "file-size");
    CHECK(code_of([&] { (void)read_verified(folder.path(), file); }) == "file-size");
  }
  CHECK(code_of([&] { sized(folder.path(), listed("none", "")); }) == "file-missing");
  CHECK(code_of([&] { sized(folder.path(), listed("file/below", "")); }) == "file-missing");
}

TEST_CASE("pipes and folders are not opened") {
  const TemporaryFolder folder;
  REQUIRE(mkfifo((folder.path() / "pipe").c_str(), 0600) == 0);
  fs::create_directory(folder.path() / "folder");
  for (const char* name : {"pipe", "folder"}) {
    CHECK(code_of([&] { verified(folder.path(), listed(name, "")); }) == "file-size");
    CHECK(code_of([&] { (void)read_json_bytes(folder.path() / name); }) == "unreadable");
  }
  CHECK(code_of([&] { (void)read_json_bytes(folder.path() / "none"); }) == "unreadable");
}

TEST_CASE("JSON that is too large is not read") {
  const TemporaryFolder folder;
  write_file(folder.path() / "file", "{}");
  CHECK(read_json_bytes(folder.path() / "file") == "{}");
  fs::resize_file(folder.path() / "file", std::uintmax_t{1} << 40);  // sparse
  CHECK(code_of([&] { (void)read_json_bytes(folder.path() / "file"); }) == "json");
}

TEST_CASE("an identity changes with what is written and with what replaces it") {
  const TemporaryFolder folder;
  const fs::path file = folder.path() / "file";
  write_file(file, "a");
  const FileIdentity first = file_identity(file);
  CHECK(first == file_identity(file));
  fs::last_write_time(file, fs::last_write_time(file) + std::chrono::seconds(1));
  CHECK_FALSE(first == file_identity(file));
  write_file(folder.path() / "other", "a");
  fs::last_write_time(folder.path() / "other", fs::last_write_time(file));
  const FileIdentity second = file_identity(file);
  fs::rename(folder.path() / "other", file);
  CHECK_FALSE(second == file_identity(file));
  const auto written = fs::last_write_time(file);
  const FileIdentity third = file_identity(file);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  write_file(file, "b");
  fs::last_write_time(file, written);
  CHECK_FALSE(third == file_identity(file));
  CHECK(file_identity(folder.path() / "none") == FileIdentity{});
}
