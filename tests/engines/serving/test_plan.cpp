#include "plan.hpp"

#include <catch2/catch.hpp>
#include <functional>
#include <string>
#include <utility>

#include "engine_set_reading.hpp"
#include "manifest_reading.hpp"
#include "rnp/error.hpp"
#include "sample_bundle.hpp"

using namespace rnp;
using namespace rnp::test;

namespace {

Manifest manifest() { return manifest_from_json(sample_manifest(), "manifest", false); }
Plan plan() { return engine_set_from_json(sample_engines(), "engines", false).plan; }

// What the plan is refused for after a change; empty where it fits.
std::string changed(const std::function<void(Plan&)>& change) {
  Plan made = plan();
  change(made);
  try {
    check_plan(made, manifest());
  } catch (const Error& err) {
    CHECK(err.code() == ErrorCode::kPlan);
    return err.what();
  }
  return "";
}

}  // namespace

TEST_CASE("the plan of a bundle is its graphs in order") {
  const Manifest network = manifest();
  const Plan made = plan_of_bundle(network);
  check_plan(made, network);
  REQUIRE(made.steps.size() == 3);
  CHECK(made.steps[0].inputs == Names{{"images", "images"}});
  CHECK(made.steps[0].outputs == Names{{"pooled", "pooled"}, {"x", "x"}});
  CHECK(made.steps[0].option_decisions.empty());
  CHECK_FALSE(made.steps[0].decides);
  CHECK(made.steps[1].inputs ==
        Names{{"features", "pooled"}, {"state", "agent/state.0"}, {"penalty", "agent/penalty"}});
  CHECK(made.steps[1].outputs == Names{{"option", "agent/option.0"}, {"next_state", "agent/state.1"}});
  CHECK(made.steps[1].decides == 0);
  CHECK(made.steps[1].agent_only);
  CHECK(made.steps[1].pieces[0].file == "agent/step_00.onnx");
  CHECK(made.steps[1].pieces[0].macs == 0);  // the backbone's are counted
  CHECK(made.steps[2].option_decisions == std::vector<std::int64_t>{0});
  CHECK(made.steps[2].pieces[1].options == std::vector<std::int64_t>{2});
  CHECK(made.steps[2].pieces[1].file == "stages/01/out2.onnx");
  CHECK(made.steps[2].pieces[1].macs == 600);
  CHECK(made.steps[2].pieces[1].weight_bytes == 64);
  std::vector<std::string> names;
  for (const TensorSpec& tensor : made.tensors) names.push_back(tensor.name);
  CHECK(names == std::vector<std::string>{"agent/penalty", "agent/state.0", "agent/state.1", "agent/option.0", "images",
                                          "x", "pooled", "outputs", "y"});
  CHECK(made.tensors[0].shape.empty());
  CHECK(made.tensors[1].shape == std::vector<std::int64_t>{5});
  CHECK(made.tensors[3].dtype == DType::kInt64);
  CHECK(made.tensors[8].follows == 0);
}

TEST_CASE("plans that do not fit their network") {
  const std::pair<const char*, std::function<void(Plan&)>> table[] = {
      {"no tensor \"agent/penalty\"", [](Plan& p) { p.tensors.erase(p.tensors.begin()); }},
      {"no tensor \"images\"", [](Plan& p) { p.tensors[4].name = "other"; }},
      {"\"images\" is not of the shape",
       [](Plan& p) {
         p.tensors[4].shape = {3, 4};
       }},
      {"\"images\" is not of the shape", [](Plan& p) { p.tensors[4].dtype = DType::kFloat16; }},
      {"\"outputs\" is not of the shape", [](Plan& p) { p.tensors[6].shape = {3}; }},
      {"\"outputs\" is not of the shape",
       [](Plan& p) {
         p.tensors[6].follows = 0;
         p.tensors[6].sizes = {1, 2};
       }},
      {"\"agent/penalty\" is not of the shape", [](Plan& p) { p.tensors[0].shape = {1}; }},
      {"\"agent/state.0\" is not of the shape", [](Plan& p) { p.tensors[1].shape = {6}; }},
      {"\"agent/option.0\" is not of the shape", [](Plan& p) { p.tensors[3].dtype = DType::kFloat32; }},
      {"\"agent/option.0\" is not of the shape", [](Plan& p) { p.tensors[3].shape = {2}; }},
      {"\"y\" does not fit", [](Plan& p) { p.tensors[7].follows = 1; }},
      {"\"y\" does not fit", [](Plan& p) { p.tensors[7].follows = INT64_MAX; }},
      {"\"y\" does not fit", [](Plan& p) { p.tensors[7].sizes = {4}; }},
      {"\"y\" does not fit", [](Plan& p) { p.tensors[7].axis = 4; }},
      {"step 0 needs options", [](Plan& p) { p.steps[0].option_decisions = {0}; }},
      {"step 1 needs options", [](Plan& p) { p.steps[1].option_decisions = {1}; }},
      {"step 1 needs options", [](Plan& p) { p.steps[0].decides.reset(); }},
      {"step 1 has not one piece", [](Plan& p) { p.steps[1].pieces.pop_back(); }},
      {"step 1 has not one piece", [](Plan& p) { p.steps[1].pieces[0].options = {2}; }},
      {"step 1 has not one piece", [](Plan& p) { p.steps[1].pieces[0].options = {3}; }},
      {"step 1 has not one piece", [](Plan& p) { p.steps[1].pieces[0].options = {}; }},
      {"step 1 has not one piece",
       [](Plan& p) {
         p.steps[1].pieces[0].options = {1, 1};
       }},
      {"step 1 has not one piece",
       [](Plan& p) {
         p.steps[1].option_decisions = {0, 0};
       }},
      {"step 1 has not one piece", [](Plan& p) { p.steps[1].option_decisions.assign(100, 0); }},
      {"step 0 has not one piece", [](Plan& p) { p.steps[0].pieces.clear(); }},
      {"step 0 reads \"x\" before", [](Plan& p) { p.steps[0].inputs["more"] = "x"; }},
      {"step 1 makes \"x\" again", [](Plan& p) { p.steps[1].outputs["more"] = "x"; }},
      {"step 1 makes \"y\" again", [](Plan& p) { p.steps[1].outputs["more"] = "y"; }},
      {"step 0 makes \"images\" again", [](Plan& p) { p.steps[0].outputs["more"] = "images"; }},
      {"step 0 takes or gives \"y\"",
       [](Plan& p) {
         p.steps[1].outputs.erase("y");
         p.steps[0].outputs["y"] = "y";
       }},
      {"takes a decision that there is not", [](Plan& p) { p.steps[0].decides = 1; }},
      {"takes a decision that there is not", [](Plan& p) { p.steps[1].decides = 0; }},
      {"gives no option", [](Plan& p) { p.steps[0].outputs.erase("o"); }},
      {"leaves a decision open",
       [](Plan& p) {
         p.steps[0].decides.reset();
         p.steps.pop_back();
       }},
      {"no step makes \"outputs\"", [](Plan& p) { p.steps[1].outputs.erase("outputs"); }},
      {"leaves a decision open", [](Plan& p) { p.steps.clear(); }},
  };
  CHECK(changed([](Plan&) {}) == "");
  for (std::size_t i = 0; i < std::size(table); ++i) {
    INFO(i << " " << table[i].first);
    CHECK_THAT(changed(table[i].second), Catch::Contains(table[i].first));
  }
}

TEST_CASE("what an engine set may do otherwise") {
  CHECK(changed([](Plan& p) { p.tensors[3].dtype = DType::kInt32; }) == "");
  CHECK(changed([](Plan& p) { p.tensors[7].sizes = {9, 8}; }) == "");  // padded, and in no order
  CHECK(changed([](Plan& p) {
          p.steps[1].option_decisions = {0, 0};
          p.steps[1].pieces.clear();
          for (std::int64_t a = 1; a <= 2; ++a) {
            for (std::int64_t b = 1; b <= 2; ++b) p.steps[1].pieces.push_back({{a, b}, "file", 0, 0});
          }
        }) == "");
}
