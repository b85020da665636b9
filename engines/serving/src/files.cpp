#include "files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

#include "json.hpp"
#include "rnp/error.hpp"
#include "sha256.hpp"

namespace rnp {

namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
constexpr const char* kRemedy = "; copy it anew, or make it again";

[[noreturn]] void unreadable(const std::filesystem::path& path, int error) {
  throw Error(ErrorCode::kUnreadable, path.string() + " cannot be read: " + std::generic_category().message(error));
}

[[noreturn]] void wrong_size(const std::filesystem::path& path, std::int64_t wanted) {
  throw Error(ErrorCode::kFileSize,
              path.string() + " is no plain file of the " + std::to_string(wanted) + " bytes listed" + kRemedy);
}

FileIdentity identity_of(const struct stat& status) noexcept {
  return {static_cast<std::uint64_t>(status.st_dev),         static_cast<std::uint64_t>(status.st_ino),
          static_cast<std::uint64_t>(status.st_size),        static_cast<std::int64_t>(status.st_mtim.tv_sec),
          static_cast<std::int64_t>(status.st_mtim.tv_nsec), static_cast<std::int64_t>(status.st_ctim.tv_sec),
          static_cast<std::int64_t>(status.st_ctim.tv_nsec)};
}

// Of a path of which a part is not there; all other errors are the file system's refusal.
bool not_there(int error) noexcept { return error == ENOENT || error == ENOTDIR; }

// An open plain file. Whoever makes one has seen that it is plain: it may have been replaced since, so it is neither
// waited for (a pipe) nor followed (a link), and looked at again.
class PlainFile {
 public:
  explicit PlainFile(const std::filesystem::path& path)
      : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)) {
    if (descriptor_ < 0) unreadable(path, errno);
    struct stat status {};
    const bool told = ::fstat(descriptor_, &status) == 0;
    const int error = errno;
    if (told && S_ISREG(status.st_mode)) {
      identity_ = identity_of(status);
      return;
    }
    ::close(descriptor_);
    unreadable(path, told ? EINVAL : error);
  }
  ~PlainFile() { ::close(descriptor_); }
  PlainFile(const PlainFile&) = delete;
  PlainFile& operator=(const PlainFile&) = delete;

  const FileIdentity& identity() const noexcept { return identity_; }

  // How many bytes came, less than asked for only at the end.
  std::size_t read(char* to, std::size_t bytes) {
    std::size_t done = 0;
    while (done < bytes) {
      const ssize_t came = ::read(descriptor_, to + done, std::min(bytes - done, kChunkBytes));
      if (came == 0) break;
      if (came > 0) {
        done += static_cast<std::size_t>(came);
      } else if (errno != EINTR) {
        unreadable(path_, errno);
      }
    }
    return done;
  }

 private:
  std::filesystem::path path_;
  int descriptor_;
  FileIdentity identity_;
};

void require_hash(const std::filesystem::path& path, const FileManifest& file, const std::string& found) {
  if (found != file.sha256) {
    throw Error(ErrorCode::kFileHash, path.string() + ": its sha256 is not the one listed" + kRemedy);
  }
}

// Whether it is what a relative POSIX path looks like when it is written as shortly as it can be.
bool is_plain(const std::string& listed) {
  if (listed.find_first_of(std::string("\\:\0", 3)) != std::string::npos) return false;
  std::size_t begin = 0;
  while (true) {
    const std::size_t end = std::min(listed.find('/', begin), listed.size());
    const std::string part = listed.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    if (end == listed.size()) return true;
    begin = end + 1;
  }
}

}  // namespace

bool FileIdentity::operator==(const FileIdentity& other) const noexcept {
  return device == other.device && inode == other.inode && bytes == other.bytes && modified_s == other.modified_s &&
         modified_ns == other.modified_ns && changed_s == other.changed_s && changed_ns == other.changed_ns;
}

FileIdentity file_identity(const std::filesystem::path& file) noexcept {
  struct stat status {};
  return ::lstat(file.c_str(), &status) == 0 ? identity_of(status) : FileIdentity{};
}

Found what_lies_at(const std::filesystem::path& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    if (not_there(errno)) return Found::kNothing;
    unreadable(path, errno);
  }
  if (S_ISLNK(status.st_mode)) return Found::kLink;
  if (S_ISREG(status.st_mode)) return Found::kFile;
  return S_ISDIR(status.st_mode) ? Found::kDirectory : Found::kOther;
}

std::string read_json_bytes(const std::filesystem::path& file) {
  PlainFile plain(file);
  const std::uint64_t size = plain.identity().bytes;
  if (size > kMaxJsonBytes) {
    throw Error(ErrorCode::kJson, file.string() + " has " + std::to_string(size) + " bytes; at most " +
                                      std::to_string(kMaxJsonBytes) + " are read");
  }
  std::string bytes(static_cast<std::size_t>(size), '\0');
  bytes.resize(plain.read(bytes.data(), bytes.size()));
  return bytes;
}

std::filesystem::path confined(const std::filesystem::path& root, const std::string& listed) {
  if (!is_plain(listed)) {
    throw Error(ErrorCode::kPath,
                root.string() + ": the listed path " + json_quoted(listed) + " leaves the directory; do not use it");
  }
  std::filesystem::path path = root;
  for (const std::filesystem::path& part : std::filesystem::path(listed)) {
    path /= part;
    if (what_lies_at(path) == Found::kLink) {
      throw Error(ErrorCode::kLink, path.string() + " is a link; only plain files are read");
    }
  }
  return path;
}

std::filesystem::path sized(const std::filesystem::path& root, const FileManifest& file) {
  std::filesystem::path path = confined(root, file.path);
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    throw Error(ErrorCode::kFileMissing, path.string() + " is missing" + kRemedy);
  }
  if (!S_ISREG(status.st_mode) || status.st_size != file.bytes) wrong_size(path, file.bytes);
  return path;
}

FileIdentity verified(const std::filesystem::path& root, const FileManifest& file) {
  const std::filesystem::path path = sized(root, file);
  PlainFile plain(path);
  Sha256 hash;
  std::vector<char> chunk(std::min(kChunkBytes, static_cast<std::size_t>(file.bytes) + 1));
  std::uint64_t total = 0;
  while (const std::size_t came = plain.read(chunk.data(), chunk.size())) {
    total += came;
    if (total > static_cast<std::uint64_t>(file.bytes)) wrong_size(path, file.bytes);  // it grows
    hash.update(chunk.data(), came);
  }
  require_hash(path, file, hash.hex());
  return plain.identity();
}

std::string read_verified(const std::filesystem::path& root, const FileManifest& file) {
  const std::filesystem::path path = sized(root, file);
  PlainFile plain(path);
  if (plain.identity().bytes != static_cast<std::uint64_t>(file.bytes)) wrong_size(path, file.bytes);
  std::string bytes(static_cast<std::size_t>(file.bytes), '\0');
  bytes.resize(plain.read(bytes.data(), bytes.size()));
  require_hash(path, file, sha256_hex(bytes));
  return bytes;
}

}  // namespace rnp
