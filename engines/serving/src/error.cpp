#include "rnp/error.hpp"

namespace rnp {

std::string_view name_of(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kMissing:
      return "missing";
    case ErrorCode::kUnreadable:
      return "unreadable";
    case ErrorCode::kJson:
      return "json";
    case ErrorCode::kVersion:
      return "version";
    case ErrorCode::kValuesHash:
      return "values-hash";
    case ErrorCode::kPath:
      return "path";
    case ErrorCode::kLink:
      return "link";
    case ErrorCode::kFields:
      return "fields";
    case ErrorCode::kFileMissing:
      return "file-missing";
    case ErrorCode::kFileSize:
      return "file-size";
    case ErrorCode::kFileHash:
      return "file-hash";
    case ErrorCode::kChanged:
      return "changed";
    case ErrorCode::kOtherBundle:
      return "other-bundle";
    case ErrorCode::kPlan:
      return "plan";
    case ErrorCode::kMismatch:
      return "mismatch";
    case ErrorCode::kRuntime:
      return "runtime";
    case ErrorCode::kDevice:
      return "device";
    case ErrorCode::kEngine:
      return "engine";
    case ErrorCode::kInput:
      return "input";
    case ErrorCode::kClosed:
      return "closed";
    case ErrorCode::kMemory:
      return "memory";
    case ErrorCode::kInternal:
      return "internal";
  }
  return "internal";
}

}  // namespace rnp
