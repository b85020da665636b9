// Times the controller beside static graphs of the same network, in turns, and the controller's own share of a run.
#include <onnxruntime_cxx_api.h>
#include <rnp/rnp.hpp>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kUsage =
    "rnp_bench_cpp PACKAGE [--static FILE.onnx]... [--weights DIR] [--images FILE] [--batch N] [--threads T]\n"
    "    [--penalty P] [--duration-s S] [--json]\n"
    "FILE of images: raw float32 [N, C, H, W]; without it they are random. DIR: what the static graphs' external\n"
    "weights are relative to. S: about how long to measure each contender.\n";
constexpr std::size_t kBatches = 4;  // random ones, and rounds to warm up

struct Arguments {
  std::string package;
  std::vector<std::string> statics;
  std::string weights;
  std::string images;
  int batch = 1;
  int threads = 1;
  std::optional<float> penalty;
  double duration_s = 3;
  bool json = false;
  bool help = false;
};

int positive(const std::string& name, const std::string& text) {
  int value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, fault] = std::from_chars(text.data(), end, value);
  if (fault != std::errc{} || stop != end || value < 1) {
    throw std::invalid_argument(name + " is \"" + text + "\"; pass an integer of 1 or more");
  }
  return value;
}

Arguments parsed(int count, char** given) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string name = given[i];
    const auto value = [&]() -> std::string {
      if (++i == count) throw std::invalid_argument(name + " takes a value");
      return given[i];
    };
    if (name == "--static") {
      arguments.statics.push_back(value());
    } else if (name == "--weights") {
      arguments.weights = value();
    } else if (name == "--images") {
      arguments.images = value();
    } else if (name == "--batch") {
      arguments.batch = positive(name, value());
    } else if (name == "--threads") {
      arguments.threads = positive(name, value());
    } else if (name == "--penalty") {
      arguments.penalty = std::stof(value());
    } else if (name == "--duration-s") {
      arguments.duration_s = std::stod(value());
    } else if (name == "--json") {
      arguments.json = true;
    } else if (name == "--help") {
      arguments.help = true;
    } else if (arguments.package.empty() && name.rfind("--", 0) != 0) {
      arguments.package = name;
    } else {
      throw std::invalid_argument("unknown argument " + name);
    }
  }
  if (arguments.package.empty() && !arguments.help) throw std::invalid_argument("a PACKAGE is needed; see --help");
  return arguments;
}

// What is spent inside the engines of a backend, counted through the public seam. For one thread at a time.
struct PieceTime {
  std::chrono::nanoseconds spent{0};
  std::size_t calls = 0;
};

class TimedCall final : public rnp::BoundCall {
 public:
  TimedCall(std::unique_ptr<rnp::BoundCall> call, std::shared_ptr<PieceTime> time)
      : call_(std::move(call)), time_(std::move(time)) {}
  void run() override {
    const auto start = Clock::now();
    call_->run();
    time_->spent += Clock::now() - start;
    ++time_->calls;
  }

 private:
  std::unique_ptr<rnp::BoundCall> call_;
  std::shared_ptr<PieceTime> time_;
};

class TimedEngine final : public rnp::Engine {
 public:
  TimedEngine(std::shared_ptr<rnp::Engine> engine, std::shared_ptr<PieceTime> time)
      : engine_(std::move(engine)), time_(std::move(time)) {}
  std::unique_ptr<rnp::BoundCall> bind(const rnp::NamedTensors& inputs, const rnp::NamedTensors& outputs) override {
    return std::make_unique<TimedCall>(engine_->bind(inputs, outputs), time_);
  }

 private:
  std::shared_ptr<rnp::Engine> engine_;
  std::shared_ptr<PieceTime> time_;
};

class TimedBackend final : public rnp::Backend {
 public:
  TimedBackend(std::shared_ptr<rnp::Backend> backend, std::shared_ptr<PieceTime> time)
      : backend_(std::move(backend)), time_(std::move(time)) {}
  std::shared_ptr<rnp::Engine> open(const std::string& path) override {
    return std::make_shared<TimedEngine>(backend_->open(path), time_);
  }
  rnp::Memory& memory() noexcept override { return backend_->memory(); }
  std::size_t max_batch() const noexcept override { return backend_->max_batch(); }
  std::string name() const override { return backend_->name(); }
  std::string device() const override { return backend_->device(); }

 private:
  std::shared_ptr<rnp::Backend> backend_;
  std::shared_ptr<PieceTime> time_;
};

// Batches of images, one after another and from the start again.
class Images {
 public:
  Images(const Arguments& arguments, const std::vector<std::int64_t>& shape)
      : batch_(static_cast<std::size_t>(arguments.batch)), shape_(shape) {
    for (const std::int64_t size : shape) image_ *= static_cast<std::size_t>(size);
    if (arguments.images.empty()) {
      std::mt19937 random(0);
      std::normal_distribution<float> normal;
      values_.resize(kBatches * batch_ * image_);
      std::generate(values_.begin(), values_.end(), [&] { return normal(random); });
    } else {
      std::ifstream stream(arguments.images, std::ios::binary);
      const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
      if (bytes.size() % (image_ * sizeof(float)) != 0) {
        throw std::invalid_argument(arguments.images + " ends inside an image");
      }
      values_.resize(bytes.size() / sizeof(float));
      std::copy_n(bytes.data(), values_.size() * sizeof(float), reinterpret_cast<char*>(values_.data()));
    }
    batches_ = values_.size() / (batch_ * image_);
    if (batches_ == 0) throw std::invalid_argument("there are fewer images than a batch takes: " + arguments.images);
  }

  float* batch(std::size_t turn) { return values_.data() + (turn % batches_) * batch_ * image_; }
  std::size_t count() const { return batch_; }  // of a batch
  std::size_t values() const { return batch_ * image_; }
  std::vector<std::int64_t> shape() const {
    std::vector<std::int64_t> shape{static_cast<std::int64_t>(batch_)};
    shape.insert(shape.end(), shape_.begin(), shape_.end());
    return shape;
  }

 private:
  std::size_t batch_, image_ = 1, batches_ = 0;
  std::vector<std::int64_t> shape_;
  std::vector<float> values_;
};

// A static graph, as a user of ONNX Runtime runs it; with the thread pool that the controller's sessions share.
class StaticGraph {
 public:
  StaticGraph(Ort::Env& env, const std::string& file, const Arguments& arguments)
      : session_(env, file.c_str(), options(arguments)) {
    Ort::AllocatorWithDefaultOptions allocator;
    input_ = session_.GetInputNameAllocated(0, allocator).get();
    output_ = session_.GetOutputNameAllocated(0, allocator).get();
  }

  void run(Images& images, std::size_t turn) {
    const auto shape = images.shape();
    const auto cpu = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    const Ort::Value input =
        Ort::Value::CreateTensor<float>(cpu, images.batch(turn), images.values(), shape.data(), shape.size());
    const char* const in = input_.c_str();
    const char* const out = output_.c_str();
    session_.Run(Ort::RunOptions{nullptr}, &in, &input, 1, &out, 1);
  }

 private:
  static Ort::SessionOptions options(const Arguments& arguments) {
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
    if (arguments.threads == 1) {
      options.SetIntraOpNumThreads(1);
    } else {
      options.DisablePerSessionThreads();
    }
    if (!arguments.weights.empty()) {
      options.AddConfigEntry("session.model_external_initializers_file_folder_path",
                             std::filesystem::absolute(arguments.weights).c_str());
    }
    return options;
  }

  Ort::Session session_;
  std::string input_, output_;
};

double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double place = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(place);
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (place - std::floor(place));
}

// Percentiles of times in whatever unit, as JSON.
std::string summary(const std::vector<double>& values) {
  std::ostringstream text;
  text << "{\"count\": " << values.size();
  for (const int percent : {10, 50, 90, 99}) {
    text << ", \"p" << percent << "\": " << percentile(values, percent / 100.0);
  }
  return text.str() + "}";
}

struct Contender {
  std::string name;
  std::function<void(std::size_t)> run;
  std::vector<double> times_ms{};
};

double timed_ms(const std::function<void(std::size_t)>& run, std::size_t turn) {
  const auto start = Clock::now();
  run(turn);
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Opens what the measured paths need, too.
void warm_up(const std::vector<Contender>& contenders) {
  for (std::size_t turn = 0; turn < kBatches; ++turn) {
    for (const Contender& contender : contenders) contender.run(turn);
  }
}

// One run each, round after round, so that what else the machine does meets all alike.
void time_in_turns(std::vector<Contender>& contenders, double duration_s, const std::function<void()>& after_first) {
  constexpr std::size_t kLeast = 5;
  const auto start = Clock::now();
  const std::chrono::duration<double> whole(duration_s * static_cast<double>(contenders.size()));
  for (std::size_t turn = 0; turn < kLeast || Clock::now() - start < whole; ++turn) {
    for (Contender& contender : contenders) {
      contender.times_ms.push_back(timed_ms(contender.run, turn));
      if (&contender == &contenders.front()) after_first();
    }
  }
}

struct Report {
  rnp::Result last;  // run
  std::vector<Contender> contenders;
  std::vector<double> overheads_us;
};

Report measured(const Arguments& arguments) {
  rnp::ControllerOptions options;
  options.device = rnp::Device::kCpu;
  options.threads = arguments.threads;
  const rnp::Package package = rnp::Package::open(arguments.package);
  const auto pieces = std::make_shared<PieceTime>();
  rnp::Controller controller(package, std::make_shared<TimedBackend>(rnp::open_backend(package, options), pieces),
                             options);

  Ort::ThreadingOptions threading;
  threading.SetGlobalIntraOpNumThreads(arguments.threads).SetGlobalInterOpNumThreads(1);
  Ort::Env env(threading, ORT_LOGGING_LEVEL_ERROR, "rnp_bench_cpp");  // the controller's, where it has one
  Images images(arguments, package.manifest().input.shape);
  rnp::RunOptions asked;
  asked.penalty = arguments.penalty;
  rnp::Result last;
  std::vector<Contender> contenders{
      {"controller", [&](std::size_t turn) { last = controller.run(images.batch(turn), images.count(), asked); }}};
  for (const std::string& file : arguments.statics) {
    const auto graph = std::make_shared<StaticGraph>(env, file, arguments);
    contenders.push_back({file, [&images, graph](std::size_t turn) { graph->run(images, turn); }});
  }

  std::vector<double> overheads_us;
  PieceTime before;
  const auto after_controller = [&] {
    const double inside_us = std::chrono::duration<double, std::micro>(pieces->spent - before.spent).count();
    overheads_us.push_back(contenders.front().times_ms.back() * 1e3 - inside_us);
    before = *pieces;
  };
  warm_up(contenders);
  before = *pieces;
  time_in_turns(contenders, arguments.duration_s, after_controller);

  return {std::move(last), std::move(contenders), std::move(overheads_us)};
}

void print_json(const Arguments& arguments, const Report& report) {
  std::cout << "{\"package\": " << std::quoted(arguments.package) << ", \"runtime\": \"" << Ort::GetVersionString()
            << "\", \"batch\": " << arguments.batch << ", \"threads\": " << arguments.threads
            << ", \"macs\": " << report.last.macs.front() << ",\n \"options\": [";
  for (std::size_t t = 0; t < report.last.options.size() / report.last.batch; ++t) {
    std::cout << (t == 0 ? "" : ", ") << report.last.options[t];
  }
  std::cout << "],\n \"overhead_us\": " << summary(report.overheads_us) << ",\n \"times_ms\": {";
  for (const Contender& contender : report.contenders) {
    std::cout << (&contender == &report.contenders.front() ? "" : ",\n  ") << std::quoted(contender.name) << ": "
              << summary(contender.times_ms);
  }
  std::cout << "}}\n";
}

void print(const Arguments& arguments, const Report& report) {
  const auto line = [](const std::string& name, const std::vector<double>& times, const char* unit) {
    std::cout << name << ": p50 " << percentile(times, 0.5) << ' ' << unit << ", p90 " << percentile(times, 0.9)
              << ", p99 " << percentile(times, 0.99) << ", " << times.size() << " runs\n";
  };
  std::cout << arguments.package << ", batch " << arguments.batch << ", threads " << arguments.threads
            << ", ONNX Runtime " << Ort::GetVersionString() << '\n';
  for (const Contender& contender : report.contenders) line(contender.name, contender.times_ms, "ms");
  line("controller, beyond its pieces", report.overheads_us, "us");
}

}  // namespace

int main(int count, char** given) {
  try {
    const Arguments arguments = parsed(count, given);
    if (arguments.help) {
      std::cout << kUsage;
      return 0;
    }
    const Report report = measured(arguments);
    (arguments.json ? print_json : print)(arguments, report);
    return 0;
  } catch (const std::invalid_argument& error) {
    std::cerr << "rnp_bench_cpp: " << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "rnp_bench_cpp: " << error.what() << '\n';
    return 1;
  }
}
