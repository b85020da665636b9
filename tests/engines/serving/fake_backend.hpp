// Engines in whose results every value they read leaves its mark, so that a
// wrong piece, a wrong row or memory that was written over shows.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "backends.hpp"
#include "fake_device.hpp"
#include "rnp/engine.hpp"
#include "rnp/error.hpp"
#include "rnp/manifest.hpp"

namespace rnp::testing {

inline constexpr const char* kEveryFile = "*";
inline constexpr std::int64_t kPrime = 4093;  // float32 holds what is below exactly

// Values of a tensor as integers. Halves are kept as their bits: what is
// between pieces is only moved.
inline std::int64_t value_at(const void* data, DType dtype, std::size_t i) {
  const auto* const bytes = static_cast<const unsigned char*>(data) + i * byte_size(dtype);
  const auto read = [&](auto value) {
    std::memcpy(&value, bytes, sizeof value);
    return static_cast<std::int64_t>(value);
  };
  if (dtype == DType::kFloat32) return read(float{});
  if (dtype == DType::kInt64) return read(std::int64_t{});
  if (dtype == DType::kInt32) return read(std::int32_t{});
  return read(std::uint16_t{});
}

inline void put_value(void* data, DType dtype, std::size_t i, std::int64_t value) {
  auto* const bytes = static_cast<unsigned char*>(data) + i * byte_size(dtype);
  const auto write = [&](auto converted) { std::memcpy(bytes, &converted, sizeof converted); };
  if (dtype == DType::kFloat32) return write(static_cast<float>(value));
  if (dtype == DType::kInt64) return write(value);
  if (dtype == DType::kInt32) return write(static_cast<std::int32_t>(value));
  return write(static_cast<std::uint16_t>(value));
}

inline std::size_t values_of(const std::vector<std::int64_t>& shape) {
  std::size_t count = 1;
  for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
  return count;
}

// One sample's tensors, by name of the plan.
using Values = std::map<std::string, std::vector<std::int64_t>>;

// A network: what its pieces compute, whoever asks.
struct FakeNetwork {
  Plan plan;
  Manifest manifest;

  const TensorSpec& tensor(const std::string& name) const {
    return *std::find_if(plan.tensors.begin(), plan.tensors.end(),
                         [&](const TensorSpec& spec) { return spec.name == name; });
  }

  // One entry per decision; 0 for those that a piece is not named by.
  std::vector<std::int64_t> options_of(const Step& step, const Piece& piece) const {
    std::vector<std::int64_t> options(manifest.decisions.size(), 0);
    for (std::size_t i = 0; i < piece.options.size(); ++i) {
      options[static_cast<std::size_t>(step.option_decisions[i])] = piece.options[i];
    }
    return options;
  }

  // What a piece makes of one sample. `read` gives value i of an input, by its
  // name in the graph; `write` takes them.
  template <typename Read, typename Write>
  void compute(const Step& step, const Piece& piece, Read read, Write write) const {
    const auto chosen = options_of(step, piece);
    std::int64_t mark = 17;
    for (const char letter : piece.file) mark = (31 * mark + letter) % kPrime;
    for (const auto& [inner, name] : step.inputs) {
      const std::size_t count = values_of(tensor(name).shape_at(chosen.data()));
      std::int64_t sum = 5 * mark;
      for (std::size_t i = 0; i < count; ++i) sum += read(inner, name, i) * static_cast<std::int64_t>(i + 3);
      mark = sum % kPrime;
    }
    std::int64_t place = 2;
    for (const auto& [inner, name] : step.outputs) {
      const bool option = step.decides && name == option_name(static_cast<std::size_t>(*step.decides));
      const std::size_t count = values_of(tensor(name).shape_at(chosen.data()));
      for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t value = (mark * place + static_cast<std::int64_t>(i)) % kPrime;
        const auto decision = static_cast<std::size_t>(step.decides.value_or(0));
        write(inner, name, i, option ? value % manifest.option_count(decision) + 1 : value);
      }
      ++place;
    }
  }
};

class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(FakeNetwork network, bool on_device = false, std::size_t most = 0)
      : network(std::move(network)), memory_(on_device ? nullptr : host_memory({})), most_(most) {
    if (on_device) {
      device_memory = std::make_shared<FakeDevice>();
      memory_ = device_memory;
    }
  }

  std::shared_ptr<Engine> open(const std::string& path) override;
  Memory& memory() noexcept override { return *memory_; }
  std::size_t max_batch() const noexcept override { return most_; }
  std::string name() const override { return "fake"; }
  std::string device() const override { return device_memory == nullptr ? "cpu" : "cuda"; }

  std::vector<std::string> opened_files() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return opened;
  }

  const FakeNetwork network;
  std::shared_ptr<FakeDevice> device_memory;
  mutable std::mutex mutex;
  std::vector<std::string> opened;    // in this order
  std::atomic<std::size_t> calls{0};  // done
  std::atomic<std::size_t> binds{0};
  std::atomic<int> engines{0};          // alive
  std::string slow_file, failing_file;  // takes 100 ms to open; cannot be opened
  std::string wrong_file;               // gives `wrong_option`
  std::int64_t wrong_option = 0;
  std::atomic<std::size_t> fail_call_at{0};  // the so-manieth call throws

 private:
  std::shared_ptr<Memory> memory_;
  std::size_t most_;
};

class FakeEngine final : public Engine, public std::enable_shared_from_this<FakeEngine> {
 public:
  FakeEngine(FakeBackend& backend, const Step& step, const Piece& piece)
      : backend_(backend), step_(step), piece_(piece) {
    ++backend_.engines;
  }
  ~FakeEngine() override { --backend_.engines; }

  std::unique_ptr<BoundCall> bind(const NamedTensors& inputs, const NamedTensors& outputs) override;

 private:
  friend class FakeCall;

  void check(const NamedTensors& tensors, const Names& names) const {
    const auto chosen = backend_.network.options_of(step_, piece_);
    if (tensors.size() != names.size()) throw wrong("was given another number of tensors");
    for (const auto& [inner, tensor] : tensors) {
      const auto known = names.find(inner);
      if (known == names.end()) throw wrong("has no tensor " + inner);
      const TensorSpec& spec = backend_.network.tensor(known->second);
      const auto shape = spec.shape_at(chosen.data());
      const bool fits = tensor.dtype == spec.dtype && tensor.shape.size() == shape.size() + 1 &&
                        std::equal(shape.begin(), shape.end(), tensor.shape.begin() + 1) &&
                        tensor.shape[0] == tensors.front().second.shape[0] && tensor.data != nullptr;
      if (!fits) throw wrong("was given " + inner + " in another shape");
      if (reinterpret_cast<std::uintptr_t>(tensor.data) % 64 != 0 && tensor.shape[0] == 0) throw wrong("empty");
      if (backend_.max_batch() != 0 && tensor.shape[0] > static_cast<std::int64_t>(backend_.max_batch())) {
        throw wrong("was given too large a batch");
      }
    }
  }

  // An output may lie on an input only where the plan says so.
  void check_apart(const NamedTensors& inputs, const NamedTensors& outputs) const {
    const auto overlap = [](const Tensor& a, const Tensor& b) {
      const auto a0 = reinterpret_cast<std::uintptr_t>(a.data), b0 = reinterpret_cast<std::uintptr_t>(b.data);
      return a0 < b0 + b.bytes() && b0 < a0 + a.bytes();
    };
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const std::string& out = step_.outputs.at(outputs[i].first);
      for (const auto& [inner, input] : inputs) {
        const auto allowed = step_.in_place.find(out);
        const bool may = allowed != step_.in_place.end() && allowed->second == step_.inputs.at(inner);
        if (!may && overlap(outputs[i].second, input)) throw wrong("would write over " + inner);
      }
      for (std::size_t j = 0; j < i; ++j) {
        if (overlap(outputs[i].second, outputs[j].second)) throw wrong("would write two outputs to one place");
      }
    }
  }

  Error wrong(const std::string& what) const { return Error(ErrorCode::kEngine, piece_.file + " " + what); }

  FakeBackend& backend_;
  const Step& step_;
  const Piece& piece_;
};

class FakeCall final : public BoundCall {
 public:
  FakeCall(std::shared_ptr<FakeEngine> engine, const NamedTensors& inputs, const NamedTensors& outputs)
      : engine_(std::move(engine)), inputs_(inputs.begin(), inputs.end()), outputs_(outputs.begin(), outputs.end()) {}

  void run() override {
    FakeBackend& backend = engine_->backend_;
    const std::size_t fail_at = backend.fail_call_at;
    if (++backend.calls == fail_at) throw engine_->wrong("failed");
    if (running_.exchange(true)) throw engine_->wrong("was called by two threads at once");
    if (backend.device_memory == nullptr) {
      compute([](const Tensor& tensor) { return tensor.data; });
    } else {
      FakeDevice& device = *backend.device_memory;
      device.enqueue([this, &device, alive = std::weak_ptr<int>(alive_)] {
        if (alive.expired()) return device.wrong("a call was dropped before it was done");
        compute([&](const Tensor& tensor) -> void* { return device.at(tensor.data, tensor.bytes()); });
      });
    }
    running_ = false;
  }

 private:
  template <typename Resolve>
  void compute(Resolve resolve) {
    const FakeBackend& backend = engine_->backend_;
    std::map<std::string, void*> data;
    for (const auto* tensors : {&inputs_, &outputs_}) {
      for (const auto& [inner, tensor] : *tensors) {
        data[(tensors == &inputs_ ? "<" : ">") + inner] = resolve(tensor);
        if (data[(tensors == &inputs_ ? "<" : ">") + inner] == nullptr) return;
      }
    }
    struct Made {
      const Tensor* tensor;
      void* data;
      std::size_t i;
      std::int64_t value;
    };
    std::vector<Made> made;  // written at the end: an output may lie on an input
    const auto batch = static_cast<std::size_t>(inputs_.begin()->second.shape[0]);
    for (std::size_t n = 0; n < batch; ++n) {
      const auto at = [&](const Tensor& tensor, std::size_t i) { return n * (values_of(tensor.shape) / batch) + i; };
      backend.network.compute(
          engine_->step_, engine_->piece_,
          [&](const std::string& inner, const std::string&, std::size_t i) {
            const Tensor& tensor = inputs_.at(inner);
            return value_at(data.at("<" + inner), tensor.dtype, at(tensor, i));
          },
          [&](const std::string& inner, const std::string& name, std::size_t i, std::int64_t value) {
            const auto found = outputs_.find(inner);
            if (found == outputs_.end()) return;
            const bool option = name.rfind("agent/option", 0) == 0;
            if (option && engine_->piece_.file == backend.wrong_file) value = backend.wrong_option;
            made.push_back({&found->second, data.at(">" + inner), at(found->second, i), value});
          });
    }
    for (const Made& each : made) put_value(each.data, each.tensor->dtype, each.i, each.value);
  }

  std::shared_ptr<FakeEngine> engine_;
  std::map<std::string, Tensor> inputs_, outputs_;
  std::shared_ptr<int> alive_ = std::make_shared<int>();
  std::atomic<bool> running_{false};
};

inline std::unique_ptr<BoundCall> FakeEngine::bind(const NamedTensors& inputs, const NamedTensors& outputs) {
  check(inputs, step_.inputs);
  check(outputs, step_.outputs);
  check_apart(inputs, outputs);
  ++backend_.binds;
  return std::make_unique<FakeCall>(shared_from_this(), inputs, outputs);
}

inline std::shared_ptr<Engine> FakeBackend::open(const std::string& path) {
  if (path == slow_file || slow_file == kEveryFile) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  if (path == failing_file) throw Error(ErrorCode::kEngine, path + " cannot be opened");
  const std::lock_guard<std::mutex> lock(mutex);
  opened.push_back(path);
  for (const Step& step : network.plan.steps) {
    for (const Piece& piece : step.pieces) {
      if (piece.file == path) return std::make_shared<FakeEngine>(*this, step, piece);
    }
  }
  throw Error(ErrorCode::kInternal, "no piece " + path);
}

}  // namespace rnp::testing
