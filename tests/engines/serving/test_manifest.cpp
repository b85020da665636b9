#include "rnp/manifest.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <string>

#include "rnp/error.hpp"

using namespace rnp;

namespace {

TensorSpec following() {
  TensorSpec tensor;
  tensor.name = "x";
  tensor.shape = {8, 3, 5};
  tensor.dtype = DType::kFloat16;
  tensor.follows = 1;
  tensor.axis = 2;
  tensor.sizes = {1, 7, 2};
  return tensor;
}

Calibration curve(const std::vector<std::pair<double, double>>& points) {
  Calibration calibration;
  for (const auto& [penalty, share] : points) {
    CalibrationPoint point;
    point.penalty = penalty;
    point.macs_share = share;
    calibration.points.push_back(point);
  }
  return calibration;
}

std::string refusal(const Calibration& calibration, double target) {
  try {
    (void)calibration.penalty_for(target);
  } catch (const Error& err) {
    CHECK(err.code() == ErrorCode::kInput);
    return err.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a tensor takes the size of the option it follows") {
  const TensorSpec tensor = following();
  const std::int64_t options[] = {9, 2};
  CHECK(tensor.shape_at(options) == std::vector<std::int64_t>{8, 7, 5});
  CHECK(tensor.largest_bytes() == 8 * 7 * 5 * 2);
  for (const std::int64_t bad : {std::int64_t{0}, std::int64_t{4}, std::int64_t{-1}}) {
    const std::int64_t none[] = {1, bad};
    CHECK_THROWS_AS(tensor.shape_at(none), Error);
  }
  TensorSpec plain;
  plain.sizes = {100};  // without a say
  CHECK(plain.shape_at(options).empty());
  CHECK(plain.largest_bytes() == 4);
}

TEST_CASE("tensors are equal where all they say is") {
  CHECK(following() == following());
  TensorSpec other = following();
  const auto differs = [&](auto change) {
    other = following();
    change();
    return !(other == following());
  };
  CHECK(differs([&] { other.name = "y"; }));
  CHECK(differs([&] { other.shape = {8, 3}; }));
  CHECK(differs([&] { other.dtype = DType::kFloat32; }));
  CHECK(differs([&] { other.follows.reset(); }));
  CHECK(differs([&] { other.axis = 1; }));
  CHECK(differs([&] { other.sizes = {1, 7}; }));
}

TEST_CASE("sizes of types, and names") {
  CHECK(byte_size(DType::kFloat32) == 4);
  CHECK(byte_size(DType::kFloat16) == 2);
  CHECK(byte_size(DType::kBfloat16) == 2);
  CHECK(byte_size(DType::kInt32) == 4);
  CHECK(byte_size(DType::kInt64) == 8);
  CHECK(state_name(12) == "agent/state.12");
  CHECK(option_name(0) == "agent/option.0");
  CHECK(name_of(ErrorCode::kOtherBundle) == "other-bundle");
  CHECK(name_of(ErrorCode::kInternal) == "internal");
}

TEST_CASE("the penalty of a share is read off the calibrated curve") {
  const Calibration rising = curve({{-1, 1.0}, {0, 0.8}, {1, 0.9}, {2, 0.8}, {3, 0.4}});
  CHECK(rising.penalty_for(1.0) == -1);
  CHECK(rising.penalty_for(0.9) == Approx(-0.5));
  CHECK(rising.penalty_for(0.8) == Approx(0));
  CHECK(rising.penalty_for(0.6) == Approx(1.5));  // 0.9 and the second 0.8 are passed over
  CHECK(rising.penalty_for(0.4) == Approx(3));
  CHECK_THAT(refusal(rising, 0.39), Catch::Contains("cheapest calibrated point takes 0.4"));
  CHECK_THAT(refusal(rising, 0.39), Catch::Contains("penalty 3"));
  for (const double bad : {0.0, -1.0, 1.01, static_cast<double>(NAN)}) {
    CHECK_THAT(refusal(rising, bad), Catch::Contains("above 0, at most 1"));
  }
  CHECK(curve({{0.5, 0.3}}).penalty_for(0.7) == 0.5);
  CHECK_THAT(refusal(curve({{0.5, 0.3}}), 0.2), Catch::Contains("0.3"));
}
