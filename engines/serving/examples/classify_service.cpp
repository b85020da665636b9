#include "classify_service.hpp"

#include <algorithm>
#include <cmath>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "arguments.hpp"
#include "classify_request.hpp"
#include "rnp/error.hpp"

namespace examples {
namespace {

using Json = nlohmann::ordered_json;

std::string dumped(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

double milliseconds(Clock::duration duration) { return std::chrono::duration<double, std::milli>(duration).count(); }

std::optional<double> parameter(const std::multimap<std::string, std::string>& parameters, const std::string& name) {
  const std::size_t count = parameters.count(name);
  if (count == 0) return std::nullopt;
  const std::optional<double> value = number_from(parameters.find(name)->second);
  if (!value || count > 1) throw rnp::Error(rnp::ErrorCode::kInput, name + " in the URL is not one number");
  return value;
}

// A misspelt name is not to be the default price in silence.
void check_names(const std::multimap<std::string, std::string>& parameters, bool any) {
  for (const auto& parameter : parameters) {
    if (any && (parameter.first == "penalty" || parameter.first == "target_macs")) continue;
    throw rnp::Error(rnp::ErrorCode::kInput, "\"" + parameter.first + "\" in the URL is not known; " +
                                                 (any ? "penalty and target_macs are" : "JSON says all in its body"));
  }
}

// Without parameters such as a charset, in lower case.
std::string media_type(const std::string& content_type) {
  std::string type = content_type.substr(0, content_type.find(';'));
  type.erase(type.find_last_not_of(" \t") + 1);
  std::transform(type.begin(), type.end(), type.begin(),
                 [](char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c); });
  return type;
}

// Of each image of the batch, in order.
std::vector<Answer> answers_from(const rnp::Result& result, std::size_t decisions) {
  std::vector<Answer> answers(result.batch);
  const std::size_t values = result.outputs.size() / result.batch;
  for (std::size_t n = 0; n < result.batch; ++n) {
    const auto outputs = result.outputs.begin() + static_cast<std::ptrdiff_t>(n * values);
    const auto options = result.options.begin() + static_cast<std::ptrdiff_t>(n * decisions);
    answers[n].outputs.assign(outputs, outputs + static_cast<std::ptrdiff_t>(values));
    answers[n].options.assign(options, options + static_cast<std::ptrdiff_t>(decisions));
    answers[n].macs = result.macs.at(n);
  }
  return answers;
}

HttpAnswer answer_json(const Answer& answer, float penalty, const rnp::Manifest& manifest) {
  const auto best = std::max_element(answer.outputs.begin(), answer.outputs.end()) - answer.outputs.begin();
  Json json;
  json["outputs"] = answer.outputs;
  json["class"] = best;
  json["label"] = manifest.classes ? Json(manifest.classes->at(static_cast<std::size_t>(best))) : Json();
  json["options"] = answer.options;
  json["macs"] = answer.macs;
  json["macs_share"] = static_cast<double>(answer.macs) / static_cast<double>(manifest.macs);
  json["penalty"] = penalty;
  json["queue_ms"] = answer.queue_ms;
  json["run_ms"] = answer.run_ms;
  json["batch"] = answer.batch;
  return {200, dumped(json)};
}

// One more for as long as it lives.
class Counted {
 public:
  explicit Counted(std::atomic<std::size_t>& count) : count_(count) { ++count_; }
  ~Counted() { --count_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  std::atomic<std::size_t>& count_;
};

std::string kind_of(const rnp::Package& package) {
  return package.engine_set() == nullptr ? "bundle" : package.engine_set()->backend;
}

rnp::Manifest with_penalty(rnp::Manifest manifest, float penalty) {
  manifest.agent.penalty = penalty;
  return manifest;
}

}  // namespace

HttpAnswer refusal(int status, const std::string& message) {
  HttpAnswer answer{status, dumped({{"error", message}})};
  if (status == 503) answer.headers["Retry-After"] = "1";
  return answer;
}

std::string media_types() { return "application/json or application/octet-stream"; }

ClassifyService::ClassifyService(rnp::Controller& controller, const ServiceOptions& options)
    : controller_(controller),
      manifest_(controller.package().manifest()),
      metrics_(manifest_, kind_of(controller.package())),
      queue_(
          options.queue, options.max_batch,
          std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::milli>(options.max_delay_ms))),
      defaults_(with_penalty(manifest_, options.penalty)) {
  try {
    for (std::size_t i = 0; i < options.workers; ++i) workers_.emplace_back([this] { work(); });
  } catch (...) {
    end();
    throw;
  }
}

ClassifyService::~ClassifyService() { end(); }

void ClassifyService::end() {
  drain();
  for (std::thread& worker : workers_) worker.join();
}

void ClassifyService::drain() {
  draining_ = true;
  queue_.close();
}

HttpAnswer ClassifyService::classify(const std::string& content_type, const std::string& body,
                                     const std::multimap<std::string, std::string>& parameters,
                                     Clock::time_point start) {
  HttpAnswer answer;
  try {
    answer = answer_to(content_type, body, parameters);
  } catch (const rnp::Error& err) {
    answer = refusal(err.code() == rnp::ErrorCode::kInput ? 400 : 500, err.what());
  } catch (const std::exception& err) {
    answer = refusal(500, err.what());
  }
  metrics_.count_request(answer.status, milliseconds(Clock::now() - start) / 1000);
  return answer;
}

HttpAnswer ClassifyService::refuse_request(int status, const std::string& message, Clock::time_point start) {
  metrics_.count_request(status, milliseconds(Clock::now() - start) / 1000);
  return refusal(status, message);
}

HttpAnswer ClassifyService::answer_to(const std::string& content_type, const std::string& body,
                                      const std::multimap<std::string, std::string>& parameters) {
  if (draining_) return refusal(503, "the server is shutting down");
  const std::string type = media_type(content_type);
  ClassifyRequest parsed;
  if (type == "application/json") {
    check_names(parameters, false);
    parsed = request_from_json(body, defaults_);
  } else if (type == "application/octet-stream") {
    check_names(parameters, true);
    parsed =
        request_from_tensor(body, parameter(parameters, "penalty"), parameter(parameters, "target_macs"), defaults_);
  } else {
    return refusal(415, "Content-Type is \"" + type + "\"; pass " + media_types());
  }
  ImageRequest request{std::move(parsed.image), parsed.penalty};
  std::future<Answer> answered = request.answer.get_future();
  const Counted counted(under_way_);
  const RequestQueue::Offer offer = queue_.offer(request);
  if (offer != RequestQueue::Offer::kAccepted) {
    return refusal(503, offer == RequestQueue::Offer::kFull ? "too many requests are waiting; try again later"
                                                            : "the server is shutting down");
  }
  return answer_of_run(answered, parsed.penalty);
}

// A run's failure is the server's, whatever its code: the request was found to fit.
HttpAnswer ClassifyService::answer_of_run(std::future<Answer>& answered, float penalty) const {
  try {
    const Answer answer = answered.get();
    const bool finite =
        std::all_of(answer.outputs.begin(), answer.outputs.end(), [](float v) { return std::isfinite(v); });
    return finite ? answer_json(answer, penalty, manifest_)
                  : refusal(500, "the network gave a value that is not finite");
  } catch (const std::exception& err) {
    return refusal(500, err.what());
  } catch (...) {
    return refusal(500, "an unknown error");
  }
}

void ClassifyService::work() noexcept {
  for (;;) {
    try {
      std::vector<ImageRequest> batch = queue_.take();
      if (batch.empty()) return;
      run(batch);
    } catch (...) {
      // Promises that were not kept tell their requests so when they go; the worker goes on.
    }
  }
}

void ClassifyService::run(std::vector<ImageRequest>& batch) {
  std::vector<Answer> answers;
  const Clock::time_point start = Clock::now();
  try {
    std::vector<float> images, penalties;
    images.reserve(batch.size() * batch.front().image.size());
    for (const ImageRequest& request : batch) {
      images.insert(images.end(), request.image.begin(), request.image.end());
      penalties.push_back(request.penalty);
    }
    rnp::RunOptions options;
    options.penalties = penalties.data();
    const rnp::Result result = controller_.run(images.data(), batch.size(), options);
    answers = answers_from(result, manifest_.decisions.size());
    metrics_.count_batch(result);
  } catch (...) {
    for (ImageRequest& request : batch) request.answer.set_exception(std::current_exception());
    return;
  }
  const double run_ms = milliseconds(Clock::now() - start);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    answers[i].queue_ms = milliseconds(start - batch[i].offered);
    answers[i].run_ms = run_ms;
    answers[i].batch = batch.size();
    batch[i].answer.set_value(std::move(answers[i]));
  }
}

HttpAnswer ClassifyService::health() const {
  return draining_ ? refusal(503, "draining") : HttpAnswer{200, dumped({{"status", "ready"}})};
}

HttpAnswer ClassifyService::model() const {
  Json json;
  json["input"] = {{"shape", manifest_.input.shape}, {"dtype", "float32"}};
  json["output"] = {{"shape", manifest_.output.shape}, {"dtype", "float32"}};
  json["classes"] = manifest_.classes ? Json(*manifest_.classes) : Json();
  json["decisions"] = Json::array();
  for (const rnp::DecisionManifest& decision : manifest_.decisions) {
    json["decisions"].push_back(
        {{"conv", decision.conv}, {"options", decision.widths.size()}, {"widths", decision.widths}});
  }
  json["macs"] = manifest_.macs;
  json["penalty"] = static_cast<float>(defaults_.agent.penalty);
  json["calibrated"] = manifest_.calibration.has_value();
  json["precision"] = manifest_.precision;
  json["backend"] = controller_.backend();
  json["device"] = controller_.device();
  return {200, dumped(json)};
}

HttpAnswer ClassifyService::metrics() const {
  return {200, metrics_.text(queue_.size()), {}, "text/plain; version=0.0.4; charset=utf-8"};
}

}  // namespace examples
