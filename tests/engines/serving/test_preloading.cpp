#include "preloading.hpp"

#include <catch2/catch.hpp>

#include "errors.hpp"
#include "small_network.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

CalibrationPoint point(double penalty, std::vector<std::vector<std::int64_t>> counts) {
  CalibrationPoint made;
  made.penalty = penalty;
  made.option_counts = std::move(counts);
  return made;
}

std::vector<std::string> names(const std::vector<std::pair<std::string, double>>& uses) {
  std::vector<std::string> found;
  for (const auto& [file, share] : uses) found.push_back(file);
  return found;
}

}  // namespace

TEST_CASE("Without a calibration every option is as likely as another") {
  const FakeNetwork network = small_network();
  const auto uses = files_by_use(network.plan, network.manifest);
  CHECK(names(uses) == std::vector<std::string>{"stem", "agent/0", "agent/1", "first/1", "first/2", "first/3",
                                                "last/1-1", "last/1-2", "last/2-1", "last/2-2", "last/3-1",
                                                "last/3-2"});
  CHECK(uses[3].second == Approx(1.0 / 3));
  CHECK(uses[6].second == Approx(1.0 / 6));
  CHECK(error_of([&] { common_files(network.plan, network.manifest); }) == "input: needs a calibration");
}

TEST_CASE(
    "The most used files come first, by the calibration nearest to the "
    "agent's penalty") {
  FakeNetwork network = small_network();
  network.manifest.calibration.emplace();
  network.manifest.calibration->points = {point(0, {{100, 0, 0}, {100, 0}}), point(2.5, {{0, 25, 75}, {199, 1}}),
                                          point(4, {{0, 100, 0}, {0, 100}})};
  const auto uses = files_by_use(network.plan, network.manifest);
  CHECK(names(uses) == std::vector<std::string>{"stem", "agent/0", "agent/1", "first/3", "last/3-1", "first/2",
                                                "last/2-1", "last/3-2", "last/2-2", "first/1", "last/1-1", "last/1-2"});
  CHECK(uses[4].second == Approx(0.75 * 199 / 200));
  // 0.75 / 200 of the images take last/3-2: not common.
  CHECK(common_files(network.plan, network.manifest) ==
        std::vector<std::string>{"stem", "agent/0", "agent/1", "first/3", "last/3-1", "first/2", "last/2-1"});
}

TEST_CASE("A calibration of other options is not gone by") {
  FakeNetwork network = small_network();
  network.manifest.calibration.emplace();
  network.manifest.calibration->points = {point(3, {{100, 0, 0}, {100, 0, 0}})};
  CHECK(files_by_use(network.plan, network.manifest)[3].second == Approx(1.0 / 3));
}
