// Whether the parts of a manifest fit together.
#pragma once

#include <string_view>

#include "fields.hpp"
#include "rnp/manifest.hpp"

namespace rnp {

// The fields are checked one by one before. Throws Error(kFields), by `at`, the whole manifest.
void check_fit(const Manifest& manifest, const Field& at);

// Whether a bundle's file is one: all others are read where they lie.
bool is_graph(std::string_view path) noexcept;

}  // namespace rnp
