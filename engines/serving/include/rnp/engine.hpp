// The seam between the controller and whatever computes: one piece of network, ready to run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rnp/manifest.hpp"

namespace rnp {

// A view of memory: C-contiguous, axis 0 the batch. It owns nothing.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;

  std::size_t bytes() const noexcept;
};

// The graph's own name of a tensor, and where it lies.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

// A call that reads and writes the same memory every time; for one thread at a time. It keeps what it needs of its
// engine alive.
class BoundCall {
 public:
  virtual ~BoundCall() = default;
  // On a device the work is only put into the stream. Throws Error(kEngine), Error(kDevice).
  virtual void run() = 0;
};

// A branch or an agent step, compiled for a device. Safe in many threads.
class Engine {
 public:
  virtual ~Engine() = default;
  // Every input, and the outputs that are wanted; an output may lie on the memory of an input where the piece was
  // built for it. The memory has to outlive the call. Throws Error(kEngine): a name, type or shape does not fit.
  virtual std::unique_ptr<BoundCall> bind(const NamedTensors& inputs, const NamedTensors& outputs) = 0;
};

// Where the tensors between pieces lie; on a device everything happens in the order of one stream.
class Memory {
 public:
  virtual ~Memory() = default;
  virtual bool on_host() const noexcept = 0;
  // Aligned to 64 bytes at least, not cleared. Throws Error(kMemory), Error(kDevice).
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* data) noexcept = 0;
  // `from_host` may be reused once copy_in returns; copy_out returns when the bytes are there.
  virtual void copy_in(void* to, const void* from_host, std::size_t bytes) = 0;
  virtual void copy_out(void* to_host, const void* from, std::size_t bytes) = 0;
  virtual void copy_within(void* to, const void* from, std::size_t bytes) = 0;
  virtual void zero(void* to, std::size_t bytes) = 0;
  // Waits until all work so far is done.
  virtual void synchronise() = 0;
};

// Opens the pieces of one package. Safe in many threads.
class Backend {
 public:
  virtual ~Backend() = default;
  // `path` as the plan lists it. Throws Error.
  virtual std::shared_ptr<Engine> open(const std::string& path) = 0;
  virtual Memory& memory() noexcept = 0;
  // The largest batch an engine takes; 0: any.
  virtual std::size_t max_batch() const noexcept { return 0; }
  // Such as "onnxruntime" and "cpu".
  virtual std::string name() const = 0;
  virtual std::string device() const = 0;
};

}  // namespace rnp
