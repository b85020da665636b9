// `manifest.json` as a checked value.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "fields.hpp"
#include "rnp/manifest.hpp"

namespace rnp {

// Every field, and how they fit together; the hash and the version are checked elsewhere. `where` begins messages.
// Newer: of a later minor version, whose keys need not be known. Throws Error(kFields).
Manifest manifest_from_json(const Json& json, const std::string& where, bool newer);

// A tensor's description, of one of the first `dtypes` of DType. Throws Error(kFields).
TensorSpec tensor_of(const Field& field, std::initializer_list<std::string_view> dtypes);
FileManifest file_of(const Field& field);

// Throws Error(kFields): one is listed twice, or `used` but not listed.
void require_listed(const Field& at, const std::vector<FileManifest>& files, const std::vector<std::string>& used);

}  // namespace rnp
