#include "run_inputs.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "errors.hpp"
#include "small_network.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Manifest calibrated() {
  Manifest manifest = small_network().manifest;
  CalibrationPoint dear, cheap;
  dear.penalty = 0;
  dear.macs_share = 0.9;
  cheap.penalty = 2;
  cheap.macs_share = 0.5;
  manifest.calibration.emplace();
  manifest.calibration->points = {dear, cheap};
  return manifest;
}

}  // namespace

TEST_CASE("Images that do not fit are refused") {
  const Manifest manifest = small_network().manifest;
  std::vector<float> images(12, 1.0F);
  check_images(images.data(), 3, manifest, true);
  CHECK(error_of([&] { check_images(nullptr, 3, manifest, true); }) ==
        "input: images are null; pass float32 [N, 1, 2, 2]");
  CHECK(error_of([&] { check_images(images.data(), 0, manifest, true); }) == "input: an empty batch");
  CHECK(error_of([&] { check_images(images.data(), std::numeric_limits<std::size_t>::max(), manifest, true); }) ==
        "input: more than can be addressed");
  CHECK(error_of([&] { check_images(images.data(), std::numeric_limits<std::size_t>::max() / 16, manifest, true); }) ==
        "input: more than can be addressed");
  for (const float bad : {kInf, -kInf, kNan}) {
    for (const std::size_t place : {0, 3, 4, 7, 11}) {
      images.assign(12, 1.0F);
      images[place] = bad;
      CHECK(error_of([&] { check_images(images.data(), 3, manifest, true); }) ==
            "input: image " + std::to_string(place / 4) + " holds NaN or infinity");
      check_images(images.data(), 3, manifest, false);
    }
  }
  // Finite, though their sum is not.
  images.assign(12, std::numeric_limits<float>::max());
  check_images(images.data(), 3, manifest, true);
  images.assign(12, std::numeric_limits<float>::denorm_min());
  check_images(images.data(), 3, manifest, true);
}

TEST_CASE("Options that do not fit are refused") {
  Manifest manifest = small_network().manifest;
  const auto thrown = [&](std::vector<std::int64_t> options) {
    return error_of([&] { checked_options(options.data(), options.size() / 2, manifest); });
  };
  const std::vector<std::int64_t> good{1, 1, 3, 2};
  CHECK(checked_options(good.data(), 2, manifest) == good);
  CHECK(checked_options(nullptr, 2, manifest) == std::vector<std::int64_t>(4, 0));
  CHECK(thrown({1, 1, 0, 2}) ==
        "input: options range over 0..2; this network "
        "takes 1..3, by decision 1..[3, 2]");
  CHECK(thrown({4, 1, 1, 2}) == "input: options range over 1..4");
  CHECK(thrown({1, 3, 1, 2}) == "input: options range over 1..3");
  CHECK(thrown({1, std::numeric_limits<std::int64_t>::min()}) == "input: options range over -9223372036854775808..1");
  manifest.decisions[1].widths.push_back(9);
  const Thrown alike = thrown({4, 1});
  CHECK(alike == "input: takes 1..3");
  CHECK(!(alike == "input: by decision"));
}

TEST_CASE("Penalties are the agent's, the caller's, or a target's") {
  const Manifest manifest = calibrated();
  const auto of = [&](const RunOptions& options) { return checked_penalties(options, 2, manifest); };
  RunOptions options;
  CHECK(of(options) == std::vector<float>{3, 3});
  options.penalty = 0.5F;
  CHECK(of(options) == std::vector<float>{0.5F, 0.5F});
  options.penalty.reset();
  const std::vector<float> each{1, 2};
  options.penalties = each.data();
  CHECK(of(options) == each);
  options.penalties = nullptr;
  options.target_macs = 0.7;
  CHECK(of(options)[0] == Approx(1));
  CHECK(of(options)[1] == Approx(1));
}

TEST_CASE("Penalties that do not fit are refused") {
  Manifest manifest = calibrated();
  const std::vector<float> each{1, kNan};
  const std::int64_t given[] = {1, 1, 1, 1};
  const auto thrown = [&](const std::function<void(RunOptions&)>& change) {
    RunOptions options;
    change(options);
    return error_of([&] { checked_penalties(options, 2, manifest); });
  };
  CHECK(thrown([&](RunOptions& o) { o.penalties = each.data(); }) == "input: penalty is not finite");
  CHECK(thrown([&](RunOptions& o) { o.penalty = kInf; }) == "input: penalty is not finite");
  CHECK(thrown([&](RunOptions& o) { o.penalty = kNan; }) == "input: penalty is not finite");
  CHECK(thrown([&](RunOptions& o) { o.penalty = 1.0F, o.penalties = each.data(); }) == "input: beside penalties");
  CHECK(thrown([&](RunOptions& o) { o.target_macs = 0.7, o.penalty = 1.0F; }) == "input: beside a penalty or options");
  CHECK(thrown([&](RunOptions& o) { o.target_macs = 0.7, o.penalties = each.data(); }) == "input: pass one of them");
  CHECK(thrown([&](RunOptions& o) { o.target_macs = 0.7, o.options = given; }) == "input: pass one of them");
  for (const double target : {0.0, -1.0, 1.1, 0.4, std::nan("")}) {
    CHECK(thrown([&](RunOptions& o) { o.target_macs = target; }) == "input: target_macs is");
  }
  CHECK(thrown([&](RunOptions& o) { o.penalty = 1.0F, o.options = given; }) == "nothing: thrown");
  manifest.calibration.reset();
  CHECK(thrown([&](RunOptions& o) { o.target_macs = 0.7; }) == "input: needs a calibration");
  manifest.agent.penalty = 1e300;
  CHECK(thrown([](RunOptions&) {}) == "input: penalty is not finite");
}
