// What a controller runs, step by step: which piece for which options, and the tensors between.
#pragma once

#include "rnp/manifest.hpp"

namespace rnp {

// Stage 0, agent step 0, stage 1, …: each graph of the bundle as it is.
Plan plan_of_bundle(const Manifest& manifest);

// Refuses a plan that could not be run for a network: every tensor is made once and before it is read, every
// decision is taken once and before its option names a piece or sizes a tensor, every choice of options has a piece,
// and what the controller itself reads and writes is as it takes it. Throws Error(kPlan).
void check_plan(const Plan& plan, const Manifest& manifest);

}  // namespace rnp
