#include <catch2/catch.hpp>
#include <cstring>
#include <numeric>
#include <thread>

#include "c_api_is_c.h"
#include "c_handles.hpp"
#include "random_networks.hpp"
#include "small_network.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

struct Fixture {
  explicit Fixture(FakeNetwork made = small_network(), ControllerOptions options = {})
      : network(std::move(made)),
        package{Package::in_memory(network.manifest, network.plan)},
        backend(std::make_shared<FakeBackend>(network)),
        controller(package.package, backend, std::move(options)) {}

  FakeNetwork network;
  rnp_package package;
  std::shared_ptr<FakeBackend> backend;
  rnp_controller controller;
  std::vector<float> images{1, 2, 3, 4, 5, 6, 7, 8};
};

// The status's name, where the last error has these words.
std::string told(rnp_status status, const std::string& words) {
  const std::string message = rnp_last_error();
  return message.find(words) != std::string::npos ? rnp_status_name(status) : message;
}

}  // namespace

TEST_CASE("C runs a batch") {
  Fixture fixture;
  const auto expected = expected_of(fixture.network, fixture.images, {3, 3}, nullptr, false);
  double sum = 0;
  REQUIRE(sum_of_outputs_in_c(&fixture.package, &fixture.controller, fixture.images.data(), 2, nullptr, &sum) == 0);
  CHECK(sum == std::accumulate(expected.outputs.begin(), expected.outputs.end(), 0.0));
  const std::int64_t given[] = {1, 3, 1, 1};
  CHECK(told(sum_of_outputs_in_c(&fixture.package, &fixture.controller, fixture.images.data(), 2, given, &sum),
             "options range over 1..3") == "input");
  CHECK(missing_package_is_refused_in_c() == 1);
}

TEST_CASE("C gets outputs, options and MACs, each where it is wanted") {
  Fixture fixture;
  const auto expected = expected_of(fixture.network, fixture.images, {3, 3}, nullptr, false);
  std::vector<float> outputs(6, -1);
  std::vector<std::int64_t> options(4, -1), macs(2, -1);
  REQUIRE(rnp_controller_run(&fixture.controller, fixture.images.data(), 2, nullptr, outputs.data(), options.data(),
                             macs.data()) == 0);
  CHECK(outputs == expected.outputs);
  CHECK(options == expected.options);
  CHECK(macs == expected.macs);
}

TEST_CASE("C's run options are all passed on") {
  Fixture fixture;
  rnp_run_options run;
  rnp_run_defaults(&run);
  CHECK(run.struct_size == sizeof run);
  std::vector<float> outputs(6, -1);
  const auto outputs_of = [&] {
    REQUIRE(rnp_controller_run(&fixture.controller, fixture.images.data(), 2, &run, outputs.data(), nullptr, nullptr) ==
            0);
    return outputs;
  };
  const float prices[] = {8, 5};
  const auto expected = [&](std::vector<float> penalties, bool round_up) {
    return expected_of(fixture.network, fixture.images, penalties, nullptr, round_up).outputs;
  };
  run.penalties = prices;
  CHECK(outputs_of() == expected({8, 5}, false));
  run.one_penalty = 1;
  CHECK(outputs_of() == expected({8, 8}, false));
  run.policy = 2;
  CHECK(outputs_of() == expected({8, 8}, true));
  run.policy = 1;
  const std::size_t before = fixture.backend->calls;
  CHECK(outputs_of() == expected({8, 8}, false));
  CHECK(fixture.backend->calls - before == 10);
  run.target_macs = 0.5;
  CHECK(told(rnp_controller_run(&fixture.controller, fixture.images.data(), 2, &run, outputs.data(), nullptr, nullptr),
             "target_macs is given beside") == "input");
}

TEST_CASE("Nothing is written where a run fails") {
  Fixture fixture;
  std::vector<float> outputs(6, -1);
  std::vector<std::int64_t> options(4, -1), macs(2, -1);
  rnp_run_options run;
  rnp_run_defaults(&run);
  run.policy = 1;
  fixture.backend->fail_call_at = 8;  // of the second sample
  CHECK(told(rnp_controller_run(&fixture.controller, fixture.images.data(), 2, &run, outputs.data(), options.data(),
                                macs.data()),
             "failed") == "engine");
  CHECK(outputs == std::vector<float>(6, -1));
  CHECK(options == std::vector<std::int64_t>(4, -1));
  CHECK(macs == std::vector<std::int64_t>(2, -1));
}

TEST_CASE("C's null arguments are errors") {
  Fixture fixture;
  float outputs[6];
  rnp_package* package = nullptr;
  rnp_controller* controller = nullptr;
  rnp_network_info info{};
  info.struct_size = sizeof info;
  const auto report = [](void*, int, rnp_status, const char*, const char*) {};
  const auto run = [&](rnp_controller* with, const float* images, float* to) {
    return rnp_controller_run(with, images, 1, nullptr, to, nullptr, nullptr);
  };
  CHECK(told(rnp_package_open(nullptr, &package), "directory is null") == "input");
  CHECK(told(rnp_package_open("/tmp", nullptr), "package is null") == "input");
  CHECK(told(rnp_package_check(nullptr, 0, report, nullptr), "package is null") == "input");
  CHECK(told(rnp_package_check(&fixture.package, 0, nullptr, nullptr), "report is null") == "input");
  CHECK(told(rnp_package_info(nullptr, &info), "package is null") == "input");
  CHECK(told(rnp_package_info(&fixture.package, nullptr), "info is null") == "input");
  CHECK(told(rnp_controller_create(nullptr, nullptr, &controller), "package is null") == "input");
  CHECK(told(rnp_controller_create(&fixture.package, nullptr, nullptr), "controller is null") == "input");
  CHECK(told(run(nullptr, fixture.images.data(), outputs), "controller is null") == "input");
  CHECK(told(run(&fixture.controller, nullptr, outputs), "images are null") == "input");
  CHECK(told(run(&fixture.controller, fixture.images.data(), nullptr), "outputs is null") == "input");
  rnp_package_free(nullptr);
  rnp_controller_free(nullptr);
  rnp_controller_defaults(nullptr);
  rnp_run_defaults(nullptr);
}

TEST_CASE("C's options that do not fit are errors") {
  Fixture fixture;
  rnp_controller* controller = nullptr;
  const auto create = [&](void (*change)(rnp_controller_options&)) {
    rnp_controller_options options;
    rnp_controller_defaults(&options);
    change(options);
    return rnp_controller_create(&fixture.package, &options, &controller);
  };
  CHECK(told(create([](auto& o) { o.struct_size = 0; }), "struct_size is 0") == "input");
  CHECK(told(create([](auto& o) { o.struct_size -= 1; }), "struct_size is") == "input");
  CHECK(told(create([](auto& o) { o.struct_size += 1; }), "struct_size is") == "input");
  CHECK(told(create([](auto& o) { o.device = 3; }), "device is 3; pass 0 to 2") == "input");
  CHECK(told(create([](auto& o) { o.preload = -1; }), "preload is -1; pass 0 to 2") == "input");
  CHECK(told(create([](auto& o) { o.threads = -1; }), "threads is -1") == "input");
  CHECK(controller == nullptr);
  rnp_run_options run;
  rnp_run_defaults(&run);
  float outputs[3];
  const auto status = [&] {
    return rnp_controller_run(&fixture.controller, fixture.images.data(), 1, &run, outputs, nullptr, nullptr);
  };
  run.policy = 3;
  CHECK(told(status(), "policy is 3; pass 0 to 2") == "input");
  rnp_run_defaults(&run);
  run.one_penalty = 1;
  CHECK(told(status(), "one_penalty is set and penalties is null") == "input");
  rnp_run_defaults(&run);
  run.struct_size = sizeof run - 8;
  CHECK(told(status(), "struct_size is") == "input");
  rnp_run_defaults(&run);
  CHECK(status() == 0);
}

TEST_CASE("C is told of the network") {
  Fixture fixture;
  rnp_network_info info{};
  info.struct_size = sizeof info;
  REQUIRE(rnp_package_info(&fixture.package, &info) == 0);
  CHECK(info.input_rank == 3);
  CHECK(std::vector<std::int64_t>(info.input_shape, info.input_shape + 4) == std::vector<std::int64_t>{1, 2, 2, 0});
  CHECK(info.output_rank == 1);
  CHECK(info.output_shape[0] == 3);
  CHECK(info.input_values == 4);
  CHECK(info.output_values == 3);
  CHECK(info.decisions == 2);
  CHECK(info.groups == 3);
  CHECK(info.macs == 1000);
  fixture.network.manifest.input.shape.assign(9, 1);
  rnp_package wide{Package::in_memory(fixture.network.manifest, fixture.network.plan)};
  info.macs = -1;
  CHECK(told(rnp_package_info(&wide, &info), "has 9 axes") == "input");
  CHECK(info.macs == -1);
  for (const std::size_t size : {std::size_t{0}, sizeof info - 8, sizeof info + 8}) {
    info.struct_size = size;
    CHECK(told(rnp_package_info(&fixture.package, &info), "struct_size is " + std::to_string(size)) == "input");
  }
  CHECK(info.macs == -1);
}

TEST_CASE("Statuses have names, and the library a version") {
  CHECK(std::string(rnp_status_name(0)) == "ok");
  CHECK(std::string(rnp_status_name(1)) == "missing");
  CHECK(std::string(rnp_status_name(static_cast<rnp_status>(ErrorCode::kInternal))) == "internal");
  CHECK(std::string(rnp_status_name(static_cast<rnp_status>(ErrorCode::kInternal) + 1)) == "unknown");
  CHECK(std::string(rnp_status_name(-1)) == "unknown");
  CHECK(std::strlen(rnp_version()) >= 5);
}

TEST_CASE("Errors are those of the thread that made them") {
  CHECK(told(rnp_package_open(nullptr, nullptr), "directory is null") == "input");
  std::string other = "unset";
  std::thread([&] { other = rnp_last_error(); }).join();
  CHECK(other.empty());
  CHECK(std::string(rnp_last_error()).find("directory is null") == 0);
}

TEST_CASE("Whatever a callback throws stays on this side") {
  Fixture fixture(small_network(), [] {
    ControllerOptions options;
    options.trace = [](const DecisionEvent&) { throw 7; };
    return options;
  }());
  float outputs[3];
  CHECK(told(rnp_controller_run(&fixture.controller, fixture.images.data(), 1, nullptr, outputs, nullptr, nullptr),
             "no exception of the standard library") == "internal");
}
