/* What a C translation unit does with the C API. */
#ifndef RNP_TESTS_C_API_IS_C_H_
#define RNP_TESTS_C_API_IS_C_H_

#include "rnp/rnp.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs a batch by a controller, options given or null, and sums its outputs. */
rnp_status sum_of_outputs_in_c(const rnp_package* package, rnp_controller* controller, const float* images,
                               size_t batch, const int64_t* options, double* sum);

/* Opens a package that does not exist; 1 where it is refused as it has to be.
 */
int missing_package_is_refused_in_c(void);

#ifdef __cplusplus
}
#endif

#endif /* RNP_TESTS_C_API_IS_C_H_ */
