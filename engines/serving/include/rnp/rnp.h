/* The flat C API. No exception crosses it; every function but the plain getters returns a status.
 * Handles are made and freed by the caller; a package may be freed while controllers of it live. */
#ifndef RNP_RNP_H_
#define RNP_RNP_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rnp_package rnp_package;
typedef struct rnp_controller rnp_controller;

/* 0: done; others as rnp::ErrorCode, in its order from 1. */
typedef int rnp_status;

/* Of this library, such as "0.1.0". */
const char* rnp_version(void);
/* Of a status, such as "file-hash"; "ok" for 0. */
const char* rnp_status_name(rnp_status status);
/* Of the last call of this thread that failed; valid until its next call. Never null. */
const char* rnp_last_error(void);

rnp_status rnp_package_open(const char* directory, rnp_package** package);
void rnp_package_free(rnp_package* package);

enum { RNP_DEVICE_AUTO = 0, RNP_DEVICE_CPU = 1, RNP_DEVICE_CUDA = 2 };

/* Calls `report` for each diagnostic; severity 0 warning, 1 error. Strings are valid during the call. */
rnp_status rnp_package_check(const rnp_package* package, int device,
                             void (*report)(void* context, int severity, rnp_status code, const char* message,
                                            const char* remedy),
                             void* context);

typedef struct rnp_network_info {
  size_t struct_size;     /* sizeof(rnp_network_info), set by the caller; others are refused */
  int64_t input_shape[8]; /* without N */
  size_t input_rank;
  int64_t output_shape[8]; /* without N */
  size_t output_rank;
  size_t input_values;  /* floats of one image */
  size_t output_values; /* floats of one image's outputs */
  size_t decisions;     /* T */
  size_t groups;        /* the largest number of options */
  int64_t macs;         /* of the full network, per image */
} rnp_network_info;

rnp_status rnp_package_info(const rnp_package* package, rnp_network_info* info);

typedef struct rnp_controller_options {
  /* sizeof(rnp_controller_options), set by rnp_controller_defaults. A library takes the sizes of its own header and of
   * earlier ones, whose missing fields have their defaults; larger or smaller ones are refused. */
  size_t struct_size;
  int device;
  int threads; /* 0: one per core */
  int preload; /* 0 none, 1 common, 2 all */
  uint64_t memory_budget_bytes;
  void* cuda_stream;
  void* (*allocate)(void* context, size_t bytes);
  void (*release)(void* context, void* data);
  void* allocator_context;
  void (*trace)(void* context, size_t decision, const int64_t* samples, const int64_t* options, size_t count,
                double since_start_us);
  void* trace_context;
} rnp_controller_options;

void rnp_controller_defaults(rnp_controller_options* options);

/* `options` may be null. */
rnp_status rnp_controller_create(const rnp_package* package, const rnp_controller_options* options,
                                 rnp_controller** controller);
/* Once no run is under way. */
void rnp_controller_free(rnp_controller* controller);

typedef struct rnp_run_options {
  size_t struct_size;     /* sizeof(rnp_run_options), set by rnp_run_defaults; as in rnp_controller_options */
  const float* penalties; /* [N], or one where one_penalty is set, or null */
  int one_penalty;        /* penalties is then not null */
  double target_macs;     /* 0: none */
  const int64_t* options; /* [N, T], or null */
  int policy;             /* 0 regroup, 1 serial, 2 round-up */
  int images_on_device;
} rnp_run_options;

void rnp_run_defaults(rnp_run_options* options);

/* images [N, C, H, W]; outputs N * output_values floats; options_taken N * decisions or null; macs N or null.
 * `run_options` may be null. Safe in many threads. Nothing is written where it fails. */
rnp_status rnp_controller_run(rnp_controller* controller, const float* images, size_t batch,
                              const rnp_run_options* run_options, float* outputs, int64_t* options_taken,
                              int64_t* macs);

#ifdef __cplusplus
}
#endif

#endif /* RNP_RNP_H_ */
