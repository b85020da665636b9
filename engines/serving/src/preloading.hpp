// Which pieces are used most, by the calibration.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "rnp/manifest.hpp"

namespace rnp {

// Files and the share of images that take each, 0..1, the most used first. From the options counted at the calibration
// point whose penalty is nearest to the agent's, each decision taken to be independent of the others; every option of a
// decision is as likely as another where there is no calibration.
std::vector<std::pair<std::string, double>> files_by_use(const Plan& plan, const Manifest& manifest);

// The files that at least one image in a hundred takes, the most used first. Throws Error(kInput): there is no
// calibration to tell.
std::vector<std::string> common_files(const Plan& plan, const Manifest& manifest);

}  // namespace rnp
