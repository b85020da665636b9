#include "metrics.hpp"

#include <algorithm>
#include <cmath>
#include <locale>
#include <sstream>
#include <utility>

namespace examples {
namespace {

std::string head(const std::string& name, const std::string& help, const char* type) {
  return "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
}

std::string line(const std::string& name, const std::string& labels, const std::string& value) {
  return name + (labels.empty() ? "" : "{" + labels + "}") + " " + value + "\n";
}

std::string label(const char* name, const std::string& value) {
  return std::string(name) + "=\"" + escaped_label(value) + "\"";
}

}  // namespace

std::string escaped_label(const std::string& value) {
  std::string escaped;
  for (const char c : value) {
    if (c == '\n') {
      escaped += "\\n";
      continue;
    }
    if (c == '\\' || c == '"') escaped += '\\';
    escaped += c;
  }
  return escaped;
}

std::string metric_number(double value) {
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  for (const int digits : {6, 17}) {
    std::ostringstream text;
    text.imbue(std::locale::classic());
    text.precision(digits);
    text << value;
    if (digits == 17 || std::stod(text.str()) == value) return text.str();
  }
  return {};
}

Histogram::Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}

void Histogram::observe(double value) {
  const auto found = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  ++counts_[static_cast<std::size_t>(found - bounds_.begin())];
  sum_ += value;
}

std::string Histogram::text(const std::string& name, const std::string& help) const {
  std::string text = head(name, help, "histogram");
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < counts_.size(); ++i) {
    count += counts_[i];
    const std::string bound = i < bounds_.size() ? metric_number(bounds_[i]) : "+Inf";
    text += line(name + "_bucket", label("le", bound), std::to_string(count));
  }
  return text + line(name + "_sum", "", metric_number(sum_)) + line(name + "_count", "", std::to_string(count));
}

Metrics::Metrics(const rnp::Manifest& manifest, const std::string& kind)
    : manifest_(manifest),
      kind_(kind),
      seconds_({0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}),
      batch_sizes_({1, 2, 4, 8, 16, 32, 64, 128, 256}),
      macs_shares_({0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1}) {
  for (std::size_t t = 0; t < manifest_.decisions.size(); ++t) {
    decisions_.emplace_back(static_cast<std::size_t>(manifest_.option_count(t)));
  }
}

void Metrics::count_request(int status, double seconds) {
  const std::lock_guard lock(mutex_);
  ++requests_[status];
  seconds_.observe(seconds);
}

void Metrics::count_batch(const rnp::Result& result) {
  const std::lock_guard lock(mutex_);
  batch_sizes_.observe(static_cast<double>(result.batch));
  for (std::size_t n = 0; n < result.batch; ++n) {
    macs_shares_.observe(static_cast<double>(result.macs.at(n)) / static_cast<double>(manifest_.macs));
    for (std::size_t t = 0; t < decisions_.size(); ++t) {
      ++decisions_[t].at(static_cast<std::size_t>(result.options.at(n * decisions_.size() + t) - 1));
    }
  }
}

std::string Metrics::text(std::size_t queue_length) const {
  const std::lock_guard lock(mutex_);
  std::string text = head("rnp_requests_total", "Answers to POST /v1/classify by status.", "counter");
  for (const auto& [status, count] : requests_) {
    text += line("rnp_requests_total", label("code", std::to_string(status)), std::to_string(count));
  }
  text += head("rnp_decisions_total", "Images by decision and the option taken.", "counter");
  for (std::size_t t = 0; t < decisions_.size(); ++t) {
    const std::string decision =
        label("decision", std::to_string(t)) + "," + label("conv", manifest_.decisions[t].conv) + ",";
    for (std::size_t j = 0; j < decisions_[t].size(); ++j) {
      text += line("rnp_decisions_total", decision + label("option", std::to_string(j + 1)),
                   std::to_string(decisions_[t][j]));
    }
  }
  text += seconds_.text("rnp_request_duration_seconds", "Seconds from a request's headers read to its answer made.");
  text += head("rnp_queue_length", "Images that wait for a worker.", "gauge");
  text += line("rnp_queue_length", "", std::to_string(queue_length));
  text += batch_sizes_.text("rnp_batch_size", "Images that ran together.");
  text += macs_shares_.text("rnp_macs_share", "Share of the full network's MACs by image.");
  text += head("rnp_package_info", "What is served.", "gauge");
  return text + line("rnp_package_info",
                     label("kind", kind_) + "," + label("format_version", manifest_.format_version) + "," +
                         label("producer", manifest_.producer) + "," + label("precision", manifest_.precision),
                     "1");
}

}  // namespace examples
