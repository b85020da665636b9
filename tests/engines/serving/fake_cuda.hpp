// A stand-in for the CUDA driver, built as a library that takes libcuda.so.1's
// place. It works lazily: nothing that is put into a stream happens before the
// stream is waited for. Its "device" memory may be touched only then, by the
// stand-in; a host that does so is stopped by the processor. Every address is
// checked.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

namespace fake_cuda {

// Back to how it was loaded, with this much device memory.
void reset(std::size_t limit_bytes = std::size_t{32} << 20);

// The next call of this function fails by this code.
void fail_next(const std::string& function, int code);

// In the order of the stream. Work in the function may touch device memory.
// Gives a code as the driver does.
int launch(void* stream, std::function<void()> work);

// Called once, when the next wait for a stream is done and before it returns:
// what another thread does meanwhile.
void at_next_synchronisation(std::function<void()> call);

// A stream of another context.
void* foreign_stream();

// Whether the device's context is current in this thread.
bool is_current();

// Whether all of this lies in one block of device memory.
bool is_allocated(const void* data, std::size_t bytes);

struct Counts {
  std::size_t used_bytes, blocks, allocations;  // allocations: so far
  std::size_t pinned, streams, contexts;        // that there are
  std::size_t queued, synchronisations;         // synchronisations: so far
  std::size_t freed_early;                      // blocks, so far, that were freed while a stream had work
};
Counts counts();

}  // namespace fake_cuda
