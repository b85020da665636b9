// What a server counts, in Prometheus' text form 0.0.4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "rnp/controller.hpp"
#include "rnp/manifest.hpp"

namespace examples {

// Backslash, quote and line feed as the text form wants them in a label's value.
std::string escaped_label(const std::string& value);

// A number as the text form writes it: shortest that reads back the same, +Inf.
std::string metric_number(double value);

// Counts by upper bounds, which rise. For one thread at a time.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds);

  void observe(double value);
  // Its lines, help and type before them.
  std::string text(const std::string& name, const std::string& help) const;

 private:
  std::vector<double> bounds_;
  std::vector<std::uint64_t> counts_;  // by bound, the last without one; not yet added up
  double sum_ = 0;
};

// Safe in many threads.
class Metrics {
 public:
  // `kind`: "bundle", or the backend of an engine set.
  Metrics(const rnp::Manifest& manifest, const std::string& kind);

  // One answer of POST /v1/classify, from its headers read to its answer made.
  void count_request(int status, double seconds);
  // One run of the controller.
  void count_batch(const rnp::Result& result);

  std::string text(std::size_t queue_length) const;

 private:
  rnp::Manifest manifest_;
  std::string kind_;
  mutable std::mutex mutex_;  // guards all below
  std::map<int, std::uint64_t> requests_;
  std::vector<std::vector<std::uint64_t>> decisions_;  // by decision, by option - 1
  Histogram seconds_, batch_sizes_, macs_shares_;
};

}  // namespace examples
