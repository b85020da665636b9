#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "c_handles.hpp"

namespace {

using rnp::Error;
using rnp::ErrorCode;

std::string& last_error() {
  thread_local std::string message;
  return message;
}

rnp_status failed(ErrorCode code, const char* message) noexcept {
  try {
    last_error() = message;
  } catch (...) {
    last_error().clear();  // no memory for the message; the status still tells
  }
  return static_cast<rnp_status>(code);
}

// Runs `body`; what it throws becomes a status and this thread's message.
template <typename Body>
rnp_status guarded(Body body) noexcept {
  try {
    body();
    return 0;
  } catch (const Error& error) {
    return failed(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return failed(ErrorCode::kMemory, "the host's memory is exhausted");
  } catch (const std::exception& error) {
    return failed(ErrorCode::kInternal, error.what());
  } catch (...) {
    return failed(ErrorCode::kInternal, "something that is no exception of the standard library was thrown");
  }
}

void need(const void* argument, const char* name) {
  if (argument == nullptr) throw Error(ErrorCode::kInput, std::string(name) + " is null; pass one");
}

Error wrong_size(std::size_t given, std::size_t known, const char* remedy) {
  return {ErrorCode::kInput, "struct_size is " + std::to_string(given) + ", not " + std::to_string(known) + "; " +
                                 remedy + ", and use this library's header"};
}

// A caller's options over the defaults of this library. A caller compiled against an older header would pass fewer
// bytes, down to `first_size`; more than this library knows could mean something it would pass over.
template <typename Options>
Options known_options(const Options* given, void (*defaults)(Options*), std::size_t first_size) {
  Options options;
  defaults(&options);
  if (given == nullptr) return options;
  if (given->struct_size < first_size || given->struct_size > sizeof(Options)) {
    throw wrong_size(given->struct_size, sizeof(Options), "set the defaults first");
  }
  std::memcpy(&options, given, given->struct_size);
  return options;
}

// A number of an enumeration of `count`.
template <typename Enum>
Enum checked(int value, int count, const char* name) {
  if (value < 0 || value >= count) {
    throw Error(ErrorCode::kInput,
                std::string(name) + " is " + std::to_string(value) + "; pass 0 to " + std::to_string(count - 1));
  }
  return static_cast<Enum>(value);
}

std::size_t put_shape(const rnp::TensorSpec& tensor, std::int64_t (&shape)[8]) {
  if (tensor.shape.size() > 8) {
    throw Error(ErrorCode::kInput, "tensor '" + tensor.name + "' has " + std::to_string(tensor.shape.size()) +
                                       " axes; rnp_network_info holds 8: use the C++ API");
  }
  std::copy(tensor.shape.begin(), tensor.shape.end(), shape);
  return tensor.shape.size();
}

std::size_t values_of(const rnp::TensorSpec& tensor) {
  return static_cast<std::size_t>(tensor.largest_bytes()) / rnp::byte_size(tensor.dtype);
}

rnp::ControllerOptions controller_options(const rnp_controller_options* given) {
  const rnp_controller_options c = known_options(given, rnp_controller_defaults, sizeof(rnp_controller_options));
  if (c.threads < 0) throw Error(ErrorCode::kInput, "threads is " + std::to_string(c.threads) + "; pass 0 or more");
  rnp::ControllerOptions options;
  options.device = checked<rnp::Device>(c.device, 3, "device");
  options.threads = c.threads;
  options.preload = checked<rnp::Preload>(c.preload, 3, "preload");
  options.memory_budget_bytes = c.memory_budget_bytes;
  options.cuda_stream = c.cuda_stream;
  options.allocator = {c.allocate, c.release, c.allocator_context};
  if (c.trace != nullptr) {
    options.trace = [trace = c.trace, context = c.trace_context](const rnp::DecisionEvent& event) {
      trace(context, event.decision, event.samples, event.options, event.count, event.since_start_us);
    };
  }
  return options;
}

rnp::RunOptions run_options(const rnp_run_options* given) {
  const rnp_run_options c = known_options(given, rnp_run_defaults, sizeof(rnp_run_options));
  rnp::RunOptions options;
  if (c.one_penalty != 0) {
    if (c.penalties == nullptr) {
      throw Error(ErrorCode::kInput, "one_penalty is set and penalties is null; point it at one, or leave both out");
    }
    options.penalty = *c.penalties;
  } else {
    options.penalties = c.penalties;
  }
  if (c.target_macs != 0) options.target_macs = c.target_macs;
  options.options = c.options;
  options.policy = checked<rnp::Policy>(c.policy, 3, "policy");
  options.images_on_device = c.images_on_device != 0;
  return options;
}

template <typename Value>
void copy_out(const std::vector<Value>& values, Value* to) {
  if (to != nullptr) std::copy(values.begin(), values.end(), to);
}

}  // namespace

extern "C" {

const char* rnp_version(void) { return RNP_VERSION; }

const char* rnp_status_name(rnp_status status) {
  if (status == 0) return "ok";
  if (status < 0 || status > static_cast<rnp_status>(ErrorCode::kInternal)) return "unknown";
  return rnp::name_of(static_cast<ErrorCode>(status)).data();
}

const char* rnp_last_error(void) { return last_error().c_str(); }

rnp_status rnp_package_open(const char* directory, rnp_package** package) {
  return guarded([&] {
    need(directory, "directory");
    need(package, "package");
    *package = std::make_unique<rnp_package>(rnp_package{rnp::Package::open(directory)}).release();
  });
}

void rnp_package_free(rnp_package* package) { std::unique_ptr<rnp_package>{package}; }

rnp_status rnp_package_check(const rnp_package* package, int device,
                             void (*report)(void* context, int severity, rnp_status code, const char* message,
                                            const char* remedy),
                             void* context) {
  return guarded([&] {
    need(package, "package");
    need(reinterpret_cast<const void*>(report), "report");
    for (const rnp::Diagnostic& found : package->package.check(checked<rnp::Device>(device, 3, "device"))) {
      report(context, found.severity == rnp::Diagnostic::Severity::kError ? 1 : 0, static_cast<rnp_status>(found.code),
             found.message.c_str(), found.remedy.c_str());
    }
  });
}

rnp_status rnp_package_info(const rnp_package* package, rnp_network_info* info) {
  return guarded([&] {
    need(package, "package");
    need(info, "info");
    if (info->struct_size != sizeof *info) throw wrong_size(info->struct_size, sizeof *info, "set it to sizeof");
    const rnp::Manifest& manifest = package->package.manifest();
    rnp_network_info found{};
    found.struct_size = sizeof found;
    found.input_rank = put_shape(manifest.input, found.input_shape);
    found.output_rank = put_shape(manifest.output, found.output_shape);
    found.input_values = values_of(manifest.input);
    found.output_values = values_of(manifest.output);
    found.decisions = manifest.decisions.size();
    found.groups = static_cast<std::size_t>(manifest.groups);
    found.macs = manifest.macs;
    *info = found;
  });
}

void rnp_controller_defaults(rnp_controller_options* options) {
  if (options == nullptr) return;
  *options = {};
  options->struct_size = sizeof *options;
}

rnp_status rnp_controller_create(const rnp_package* package, const rnp_controller_options* options,
                                 rnp_controller** controller) {
  return guarded([&] {
    need(package, "package");
    need(controller, "controller");
    *controller = std::make_unique<rnp_controller>(package->package, controller_options(options)).release();
  });
}

void rnp_controller_free(rnp_controller* controller) { std::unique_ptr<rnp_controller>{controller}; }

void rnp_run_defaults(rnp_run_options* options) {
  if (options == nullptr) return;
  *options = {};
  options->struct_size = sizeof *options;
}

rnp_status rnp_controller_run(rnp_controller* controller, const float* images, size_t batch,
                              const rnp_run_options* options, float* outputs, int64_t* options_taken, int64_t* macs) {
  return guarded([&] {
    need(controller, "controller");
    need(outputs, "outputs");
    const rnp::Result result = controller->controller.run(images, batch, run_options(options));
    copy_out(result.outputs, outputs);
    copy_out(result.options, options_taken);
    copy_out(result.macs, macs);
  });
}

}  // extern "C"
