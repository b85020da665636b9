// What can go wrong, by what a caller can do about it. The same codes as in Python and in docs/bundle-format.md.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace rnp {

enum class ErrorCode {
  kMissing = 1,  // "missing": there is no such bundle
  kUnreadable,   // "unreadable": the file system refuses
  kJson,         // "json": no JSON object as the format wants it
  kVersion,      // "version": of another major version
  kValuesHash,   // "values-hash": values differ from those written
  kPath,         // "path": a listed path leaves the directory
  kLink,         // "link": a listed file is or lies behind a link
  kFields,       // "fields": a field is missing, unknown or of a wrong kind, or parts do not fit together
  kFileMissing,  // "file-missing"
  kFileSize,     // "file-size"
  kFileHash,     // "file-hash"
  kChanged,      // "changed": replaced after it was checked
  kOtherBundle,  // "other-bundle": an engine set's manifest.json is another bundle's
  kPlan,         // "plan": an engine set's plan does not fit its network
  kMismatch,     // "mismatch": an engine set built for another machine or runtime
  kRuntime,      // "runtime": this library was built without what is needed
  kDevice,       // "device": no GPU that can be used, lost, or out of memory
  kEngine,       // "engine": an engine could not be opened or run
  kInput,        // "input": images, options or arguments that do not fit
  kClosed,       // "closed": used after close (C API)
  kMemory,       // "memory": the host's memory is exhausted
  kInternal,     // "internal": anything else, a defect
};

// The code as docs and Python write it, such as "file-hash".
std::string_view name_of(ErrorCode code) noexcept;

// Says what is wrong, where, and what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace rnp
