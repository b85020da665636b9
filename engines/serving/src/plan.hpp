// What a controller runs, step by step: which piece for which options, and the tensors between.
#pragma once

#include "rnp/manifest.hpp"

namespace rnp {

// Stage 0, agent step 0, stage 1, …: each graph of the bundle as it is.
Plan plan_of_bundle(const Manifest& manifest);

// Refuses a plan that could not be run for a network: every tensor is made before it is read, every decision is taken
// once and before its option names a piece, and every choice of options has a piece. Throws Error(kPlan).
void check_plan(const Plan& plan, const Manifest& manifest);

}  // namespace rnp
