// What a server does with a request, whatever carries it: parse, queue, run in batches, answer as JSON.
#pragma once

#include <atomic>
#include <cstddef>
#include <future>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "metrics.hpp"
#include "request_queue.hpp"
#include "rnp/controller.hpp"

namespace examples {

struct ServiceOptions {
  std::size_t workers = 1, max_batch = 8, queue = 64;
  double max_delay_ms = 2;
  float penalty = 0;  // where a request names none
};

struct HttpAnswer {
  int status = 200;
  std::string body;
  std::map<std::string, std::string> headers{};
  std::string content_type = "application/json";
};

// The JSON of an error.
HttpAnswer refusal(int status, const std::string& message);

// Those a request may have, to say what to pass.
std::string media_types();

// Every request that is accepted is answered once. Safe in many threads.
class ClassifyService {
 public:
  ClassifyService(rnp::Controller& controller, const ServiceOptions& options);
  // Runs what was accepted, then ends the workers.
  ~ClassifyService();
  ClassifyService(const ClassifyService&) = delete;
  ClassifyService& operator=(const ClassifyService&) = delete;

  // Blocks until the answer is there. `parameters` are those of the URL, `start` is when the request's headers were
  // read.
  HttpAnswer classify(const std::string& content_type, const std::string& body,
                      const std::multimap<std::string, std::string>& parameters, Clock::time_point start);
  // An answer that needs no run, counted like the others.
  HttpAnswer refuse_request(int status, const std::string& message, Clock::time_point start);
  HttpAnswer health() const;
  HttpAnswer model() const;
  HttpAnswer metrics() const;

  // From now on new requests are refused.
  void drain();
  bool draining() const noexcept { return draining_; }
  // Requests accepted whose answer was not yet made.
  std::size_t under_way() const noexcept { return under_way_; }

 private:
  HttpAnswer answer_to(const std::string& content_type, const std::string& body,
                       const std::multimap<std::string, std::string>& parameters);
  HttpAnswer answer_of_run(std::future<Answer>& answered, float penalty) const;
  void end();
  void work() noexcept;
  void run(std::vector<ImageRequest>& batch);

  rnp::Controller& controller_;
  const rnp::Manifest& manifest_;
  Metrics metrics_;
  RequestQueue queue_;
  rnp::Manifest defaults_;
  std::atomic<bool> draining_{false};
  std::atomic<std::size_t> under_way_{0};
  std::vector<std::thread> workers_;
};

}  // namespace examples
