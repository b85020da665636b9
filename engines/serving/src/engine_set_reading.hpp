// `engines.json` as a checked value.
#pragma once

#include <string>

#include "fields.hpp"
#include "rnp/manifest.hpp"

namespace rnp {

// As manifest_from_json; whether the plan fits the network is checked by `check_plan`. Throws Error(kFields).
EngineSetManifest engine_set_from_json(const Json& json, const std::string& where, bool newer);

}  // namespace rnp
