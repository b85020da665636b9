#include "c_api_is_c.h"

#include <stdlib.h>
#include <string.h>

rnp_status sum_of_outputs_in_c(const rnp_package* package, rnp_controller* controller, const float* images,
                               size_t batch, const int64_t* options, double* sum) {
  rnp_network_info info;
  rnp_run_options run;
  float* outputs;
  size_t i;
  rnp_status status;
  info.struct_size = sizeof info;
  status = rnp_package_info(package, &info);
  if (status != 0) return status;
  outputs = (float*)malloc(batch * info.output_values * sizeof(float));
  if (outputs == NULL) return -1;
  rnp_run_defaults(&run);
  run.options = options;
  status = rnp_controller_run(controller, images, batch, &run, outputs, NULL, NULL);
  if (status == 0) {
    *sum = 0;
    for (i = 0; i < batch * info.output_values; ++i) *sum += outputs[i];
  }
  free(outputs);
  return status;
}

int missing_package_is_refused_in_c(void) {
  rnp_package* package = NULL;
  const rnp_status status = rnp_package_open("/nonexistent/bundle", &package);
  return package == NULL && strcmp(rnp_status_name(status), "missing") == 0 && strlen(rnp_last_error()) > 0;
}
