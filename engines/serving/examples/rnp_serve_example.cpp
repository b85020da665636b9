// rnp_serve_example PACKAGE: a small HTTP server on cpp-httplib. docs/cpp.md says what it answers.
#include <httplib.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <future>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "arguments.hpp"
#include "classify_request.hpp"
#include "classify_service.hpp"
#include "rnp/controller.hpp"

namespace {

using examples::Clock;
using examples::HttpAnswer;
using Json = nlohmann::ordered_json;

constexpr const char* kUsage =
    "rnp_serve_example PACKAGE [--host 127.0.0.1] [--port 0] [--workers 1] [--threads 1] [--max-batch 8]\n"
    "    [--max-delay-ms 2] [--queue 64] [--connections 64] [--max-body-bytes N] [--penalty P] [--keep-alive-s 5]\n"
    "    [--drain-s 30] [--quiet]\n";
constexpr const char* kClassify = "/v1/classify";

// One line of JSON a call; a line is written as one.
class Log {
 public:
  explicit Log(bool quiet) : quiet_(quiet) {}

  void event(Json fields) const {
    if (quiet_) return;
    fields["time"] = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    const std::string line = fields.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    std::fwrite(line.data(), 1, line.size(), stderr);
  }

 private:
  bool quiet_;
};

// With `close` the connection ends after the answer: httplib closes one whose content could not be provided, and here
// the provider says so once all of it is written.
void send(httplib::Response& response, const HttpAnswer& answer, bool close) {
  response.status = answer.status;
  for (const auto& [name, value] : answer.headers) response.set_header(name, value);
  if (!close) {
    response.set_content(answer.body, answer.content_type);
    return;
  }
  response.set_header("Connection", "close");
  response.set_content_provider(answer.body.size(), answer.content_type,
                                [body = answer.body](std::size_t offset, std::size_t length, httplib::DataSink& sink) {
                                  sink.write(body.data() + offset, std::min(length, body.size() - offset));
                                  return false;
                                });
}

// What needs no body.
HttpAnswer plain_answer(const examples::ClassifyService& service, const httplib::Request& request) {
  const bool reads = request.method == "GET" || request.method == "HEAD";
  const bool known = request.path == "/healthz" || request.path == "/metrics" || request.path == "/v1/model";
  if (known && reads) {
    if (request.path == "/healthz") return service.health();
    return request.path == "/metrics" ? service.metrics() : service.model();
  }
  if (!known && request.path != kClassify) return examples::refusal(404, "there is no " + request.path);
  HttpAnswer answer = examples::refusal(405, request.path + " takes " + (known ? "GET" : "POST"));
  answer.headers["Allow"] = known ? "GET, HEAD" : "POST";
  return answer;
}

// The body, of which nothing is kept beyond `max_bytes`; false where the rest of the connection is of no use.
bool read_body(const httplib::ContentReader& reader, std::size_t max_bytes, std::string& body, bool& too_large) {
  std::size_t seen = 0;
  return reader([&](const char* data, std::size_t size) {
    seen += size;
    too_large = seen > max_bytes;
    if (too_large) {
      body.clear();
    } else {
      body.append(data, size);
    }
    return seen <= 16 * max_bytes;  // read on for a while, so that the answer is not lost in a reset
  });
}

class HttpServer {
 public:
  HttpServer(examples::ClassifyService& service, const examples::Arguments& arguments, const Log& log,
             std::size_t default_max_body)
      : service_(service), log_(log) {
    constexpr long long kMost = 1LL << 40;
    max_body_ = static_cast<std::size_t>(
        arguments.integer("max-body-bytes", static_cast<long long>(default_max_body), 1, kMost));
    const auto connections = static_cast<std::size_t>(arguments.integer("connections", 64, 1, 4096));
    server_.new_task_queue = [connections] { return new httplib::ThreadPool(connections); };
    server_.set_keep_alive_max_count(10'000);
    server_.set_keep_alive_timeout(arguments.integer("keep-alive-s", 5, 1, 3600));
    server_.set_tcp_nodelay(true);
    server_.set_socket_options([this](int socket) {
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
      listening_ = socket;
    });
    route();
  }

  // The port; -1 where it cannot be had.
  int bind(const std::string& host, int port) {
    const bool bound = port == 0 ? (port = server_.bind_to_any_port(host)) > 0 : server_.bind_to_port(host, port);
    // httplib asks for a backlog of 5, too short for many that connect at once.
    return bound && ::listen(listening_, SOMAXCONN) == 0 ? port : -1;
  }

  // Until `stop_accepting`, and every connection is done. httplib takes the one for a fault as any other end, so that
  // its own answer says nothing: what ended before it was asked to is at fault.
  void serve() {
    try {
      server_.listen_after_bind();
    } catch (const std::exception& err) {
      log_.event({{"event", "fault"}, {"error", err.what()}});
    }
    ended_ = true;
  }
  bool ended() const noexcept { return ended_; }

  // Unlike httplib's stop(), what is connected already is served to its end.
  void stop_accepting() {
    if (!ended_) ::shutdown(listening_, SHUT_RD);
  }

 private:
  void route() {
    // What httplib itself refuses, such as a request line or a Range that it cannot read: a body may be left.
    server_.set_error_handler(
        httplib::Server::HandlerWithResponse([](const httplib::Request&, httplib::Response& response) {
          if (response.has_header("Content-Type")) return httplib::Server::HandlerResponse::Unhandled;
          send(response, examples::refusal(response.status, "the request cannot be read"), true);
          return httplib::Server::HandlerResponse::Handled;
        }));
    server_.set_exception_handler([](const httplib::Request&, httplib::Response& response, std::exception_ptr error) {
      HttpAnswer made;
      try {
        std::rethrow_exception(error);
      } catch (const std::exception& err) {
        made = examples::refusal(500, err.what());
      } catch (...) {
        made = examples::refusal(500, "an unknown error");
      }
      send(response, made, true);
    });
    server_.set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
      auto& own = const_cast<httplib::Request&>(request);  // httplib's own, which is not const
      own.ranges.clear();                                  // every answer is whole
      if (request.method == "POST" && request.path == kClassify) return httplib::Server::HandlerResponse::Unhandled;
      // A body that is not read would be taken for the next request.
      const bool body = request.has_header("Transfer-Encoding") || request.has_header("Content-Length");
      if (body && request.method == "HEAD") own.method = "GET";  // an answer without content cannot end the connection
      answer(request, response, plain_answer(service_, request), body, Clock::now());
      return httplib::Server::HandlerResponse::Handled;
    });
    server_.Post(kClassify, [this](const httplib::Request& request, httplib::Response& response,
                                   const httplib::ContentReader& reader) {
      const Clock::time_point start = Clock::now();
      if (request.is_multipart_form_data()) {  // which httplib cannot read here: it throws in the middle of the body
        const std::string message = "Content-Type is \"multipart/form-data\"; pass " + examples::media_types();
        answer(request, response, service_.refuse_request(415, message, start), true, start);
        return;
      }
      std::string body;
      bool too_large = false;
      const bool whole = read_body(reader, max_body_, body, too_large);
      HttpAnswer made;
      if (too_large) {
        made = service_.refuse_request(413, "the body has more than " + std::to_string(max_body_) + " bytes", start);
      } else if (!whole) {
        made = service_.refuse_request(400, "the body ended early", start);
      } else {
        made = service_.classify(request.get_header_value("Content-Type"), body, request.params, start);
      }
      answer(request, response, made, !whole, start);
    });
  }

  void answer(const httplib::Request& request, httplib::Response& response, const HttpAnswer& made, bool close,
              Clock::time_point start) {
    log_.event({{"event", "request"},
                {"method", request.method},
                {"path", request.path},
                {"status", made.status},
                {"ms", std::chrono::duration<double, std::milli>(Clock::now() - start).count()}});
    send(response, made, close || service_.draining());
  }

  examples::ClassifyService& service_;
  const Log& log_;
  std::size_t max_body_ = 0;
  int listening_ = -1;
  std::atomic<bool> ended_{false};
  httplib::Server server_;
};

// Blocked in every thread that is started later, and waited for.
sigset_t blocked_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// Answers what was accepted, then returns; false where that took longer than `limit`.
bool drained(examples::ClassifyService& service, HttpServer& server, std::future<void>& served,
             std::chrono::seconds limit) {
  const Clock::time_point deadline = Clock::now() + limit;
  service.drain();
  while (service.under_way() > 0 && Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  server.stop_accepting();
  return served.wait_until(deadline) == std::future_status::ready;
}

examples::ServiceOptions service_options(const examples::Arguments& arguments, const rnp::Manifest& manifest) {
  examples::ServiceOptions options;
  options.workers = static_cast<std::size_t>(arguments.integer("workers", 1, 1, 256));
  options.max_batch = static_cast<std::size_t>(arguments.integer("max-batch", 8, 1, 4096));
  options.queue = static_cast<std::size_t>(arguments.integer("queue", 64, 1, 1 << 20));
  options.max_delay_ms = arguments.number("max-delay-ms").value_or(2);
  if (options.max_delay_ms < 0 || options.max_delay_ms > 60000) {
    throw rnp::Error(rnp::ErrorCode::kInput,
                     "--max-delay-ms is " + arguments.text("max-delay-ms", "") + "; pass a number, 0 to 60000");
  }
  options.penalty = examples::penalty_from(arguments.number("penalty"), std::nullopt, manifest);
  return options;
}

int serve(const examples::Arguments& arguments) {
  const sigset_t signals = blocked_signals();
  const Log log(arguments.has("quiet"));
  const std::chrono::seconds limit(arguments.integer("drain-s", 30, 0, 86400));
  rnp::Package package = rnp::Package::open(arguments.alone().at(0));
  const rnp::Manifest& manifest = package.manifest();
  rnp::ControllerOptions options;
  options.threads = static_cast<int>(arguments.integer("threads", 1, 1, 1024));
  if (manifest.calibration) options.preload = rnp::Preload::kCommon;
  rnp::Controller controller(package, options);
  examples::ClassifyService service(controller, service_options(arguments, manifest));
  HttpServer server(service, arguments, log, (1 << 20) + 32 * examples::input_values(manifest));

  const std::string host = arguments.text("host", "127.0.0.1");
  const int port = server.bind(host, static_cast<int>(arguments.integer("port", 0, 0, 65535)));
  if (port < 0)
    throw rnp::Error(rnp::ErrorCode::kInput,
                     "cannot listen on " + host + ": is the address this machine's, and the port free?");
  const pthread_t main_thread = pthread_self();
  std::future<void> served = std::async(std::launch::async, [&] {
    server.serve();
    pthread_kill(main_thread, SIGTERM);  // wakes main where nobody asked for the end
  });
  bool unasked = false;
  try {
    std::cout << "listening on http://" << host << ":" << port << std::endl;
    log.event({{"event", "listening"}, {"host", host}, {"port", port}});
    int signal = 0;
    sigwait(&signals, &signal);
    unasked = server.ended();
    if (unasked) log.event({{"event", "ended unasked"}});
    log.event({{"event", "draining"}, {"signal", signal}, {"under_way", service.under_way()}});
    if (!drained(service, server, served, limit)) {
      log.event({{"event", "gave up"}, {"under_way", service.under_way()}});
      std::_Exit(1);
    }
    log.event({{"event", "stopped"}});
  } catch (const std::exception& err) {
    // `served` is waited for when it goes, so it has to end first.
    if (drained(service, server, served, limit)) throw;
    std::cerr << "rnp_serve_example: " << err.what() << std::endl;
    std::_Exit(1);
  }
  return unasked ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const examples::Arguments arguments(argc, argv,
                                        {"host", "port", "workers", "threads", "max-batch", "max-delay-ms", "queue",
                                         "connections", "max-body-bytes", "penalty", "keep-alive-s", "drain-s"},
                                        {"quiet", "help"});
    if (arguments.has("help") || arguments.alone().size() != 1) {
      (arguments.has("help") ? std::cout : std::cerr) << kUsage;
      return arguments.has("help") ? 0 : 2;
    }
    return serve(arguments);
  } catch (const std::exception& err) {
    std::cerr << "rnp_serve_example: " << err.what() << "\n";
    return 1;
  }
}
