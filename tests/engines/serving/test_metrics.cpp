#include <catch2/catch.hpp>
#include <string>

#include "metrics.hpp"

namespace {

rnp::Manifest two_decisions() {
  rnp::Manifest manifest;
  manifest.format_version = "1.0";
  manifest.producer = "a \"test\"";
  manifest.macs = 1000;
  manifest.decisions = {{"features.3", {1, 2}, 1}, {"a\\b\nc", {1, 2, 3}, 2}};
  return manifest;
}

bool has_line(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

}  // namespace

TEST_CASE("label values are escaped") {
  CHECK(examples::escaped_label("plain 1.2-3") == "plain 1.2-3");
  CHECK(examples::escaped_label("a\"b\\c\nd") == "a\\\"b\\\\c\\nd");
}

TEST_CASE("numbers read back the same") {
  CHECK(examples::metric_number(0.0025) == "0.0025");
  CHECK(examples::metric_number(10) == "10");
  CHECK(std::stod(examples::metric_number(1.0 / 3)) == 1.0 / 3);
  CHECK(examples::metric_number(HUGE_VAL) == "+Inf");
  CHECK(examples::metric_number(-HUGE_VAL) == "-Inf");
}

TEST_CASE("buckets are cumulative, a bound belongs to its own") {
  examples::Histogram histogram({1, 2});
  for (const double value : {0.5, 1.0, 1.5, 2.5}) histogram.observe(value);
  CHECK(histogram.text("h", "Help.") ==
        "# HELP h Help.\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"2\"} 3\nh_bucket{le=\"+Inf\"} 4\n"
        "h_sum 5.5\nh_count 4\n");
}

TEST_CASE("requests, decisions and batches are counted") {
  examples::Metrics metrics(two_decisions(), "bundle");
  metrics.count_request(200, 0.002);
  metrics.count_request(200, 20);
  metrics.count_request(503, 0);
  rnp::Result result;
  result.batch = 2;
  result.options = {1, 3, 2, 3};
  result.macs = {250, 1000};
  metrics.count_batch(result);
  const std::string text = metrics.text(7);
  for (const char* line : {
           "rnp_requests_total{code=\"200\"} 2",
           "rnp_requests_total{code=\"503\"} 1",
           "rnp_request_duration_seconds_bucket{le=\"0.001\"} 1",
           "rnp_request_duration_seconds_bucket{le=\"0.0025\"} 2",
           "rnp_request_duration_seconds_bucket{le=\"10\"} 2",
           "rnp_request_duration_seconds_bucket{le=\"+Inf\"} 3",
           "rnp_request_duration_seconds_count 3",
           "rnp_decisions_total{decision=\"0\",conv=\"features.3\",option=\"1\"} 1",
           "rnp_decisions_total{decision=\"0\",conv=\"features.3\",option=\"2\"} 1",
           "rnp_decisions_total{decision=\"1\",conv=\"a\\\\b\\nc\",option=\"1\"} 0",
           "rnp_decisions_total{decision=\"1\",conv=\"a\\\\b\\nc\",option=\"3\"} 2",
           "rnp_queue_length 7",
           "rnp_batch_size_bucket{le=\"1\"} 0",
           "rnp_batch_size_bucket{le=\"2\"} 1",
           "rnp_batch_size_sum 2",
           "rnp_macs_share_bucket{le=\"0.2\"} 0",
           "rnp_macs_share_bucket{le=\"0.3\"} 1",
           "rnp_macs_share_bucket{le=\"1\"} 2",
           "rnp_macs_share_sum 1.25",
           "rnp_package_info{kind=\"bundle\",format_version=\"1.0\",producer=\"a \\\"test\\\"\",precision=\"fp32\"} 1",
       }) {
    INFO(line);
    CHECK(has_line(text, line));
  }
}
