// All of it.
#pragma once

#include "rnp/controller.hpp"  // IWYU pragma: export
#include "rnp/engine.hpp"      // IWYU pragma: export
#include "rnp/error.hpp"       // IWYU pragma: export
#include "rnp/manifest.hpp"    // IWYU pragma: export
#include "rnp/package.hpp"     // IWYU pragma: export
