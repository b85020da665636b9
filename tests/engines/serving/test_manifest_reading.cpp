#include "manifest_reading.hpp"

#include <catch2/catch.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine_set_reading.hpp"
#include "rnp/error.hpp"
#include "sample_bundle.hpp"

using namespace rnp;
using namespace rnp::test;

namespace {

Json value(const std::string& text) {
  Json json = parse_json("{\"v\":" + text + "}", "value");
  return std::move(json.object()->at("v"));
}

// What it is refused for; empty where it is read.
template <class Read>
std::string refusal(Read read, const Json& json, bool newer = false) {
  try {
    read(json, "FILE", newer);
  } catch (const Error& err) {
    CHECK(err.code() == ErrorCode::kFields);
    CHECK_THAT(err.what(), Catch::StartsWith("FILE: "));
    return err.what();
  }
  return "";
}

std::string manifest_refusal(const Json& json, bool newer = false) { return refusal(manifest_from_json, json, newer); }
std::string engines_refusal(const Json& json, bool newer = false) { return refusal(engine_set_from_json, json, newer); }

// The manifest with one place changed.
std::string changed(const std::string& place, const std::string& text) {
  Json manifest = sample_manifest();
  at(manifest, place) = value(text);
  return manifest_refusal(manifest);
}

std::string engines_changed(const std::string& place, const std::string& text) {
  Json engines = sample_engines();
  at(engines, place) = value(text);
  return engines_refusal(engines);
}

bool remove_key(Json& json, const std::string& object, const std::string& key) {
  return at(json, object).object()->erase(key) == 1;
}

constexpr const char* kNumbers[] = {"null", "true", "\"1\"", "[]", "{}"};

}  // namespace

TEST_CASE("a manifest is read with its values and defaults") {
  const Manifest manifest = manifest_from_json(sample_manifest(), "FILE", false);
  CHECK(manifest.format_version == "1.0");
  CHECK(manifest.producer == "test");
  CHECK(manifest.precision == "fp32");
  CHECK(manifest.groups == 2);
  CHECK(manifest.macs == 1000);
  CHECK(manifest.input.shape == std::vector<std::int64_t>{3, 4, 4});
  CHECK(manifest.input.dtype == DType::kFloat32);
  CHECK_FALSE(manifest.input.follows);
  CHECK(manifest.output.name == "outputs");
  CHECK(manifest.agent.state_size == 5);
  CHECK(manifest.agent.penalty == 0.25);
  CHECK(manifest.agent.penalty_range == std::make_pair(0.0, 1.5));
  CHECK(manifest.agent.steps[0].features == "pooled");
  CHECK(manifest.agent.steps[0].macs == 7);
  CHECK(manifest.convolutions[1].role == "prunable");
  CHECK(manifest.convolutions[1].widths == std::vector<std::int64_t>{2, 4});
  CHECK(manifest.decisions[0].conv == "body");
  CHECK(manifest.option_count(0) == 2);
  CHECK_FALSE(manifest.stages[0].decision);
  CHECK(manifest.stages[1].decision == 0);
  CHECK(manifest.stages[1].outputs[1].sizes == std::vector<std::int64_t>{2, 4});
  CHECK(manifest.stages[1].branches[1].output_option == 2);
  CHECK(manifest.stages[1].branches[1].macs == 600);
  CHECK(manifest.stages[1].branches[1].weight_bytes == 64);
  CHECK(manifest.files.size() == 5);
  CHECK(manifest.files[0].path == "weights.bin");
  CHECK(manifest.files[0].bytes == 11);
  CHECK(manifest.calibration->points[1].macs_share == 0.7);
  CHECK(manifest.calibration->points[0].option_counts[0][1] == 10);
  CHECK(manifest.preprocessing->colour == "RGB");
  CHECK(manifest.preprocessing->shorter_side == 5);
  CHECK(manifest.preprocessing->std[2] == 0.5);
  CHECK(manifest.classes->at(1) == "dog");
}

TEST_CASE("keys that have to be there, and those that may be left out") {
  const std::pair<const char*, std::vector<const char*>> required[] = {
      {"",
       {"format_version", "producer", "inputs", "outputs", "groups", "macs", "agent", "convolutions", "decisions",
        "stages", "files", "verification"}},
      {"inputs/0", {"name", "shape"}},
      {"agent", {"state_size", "penalty", "steps"}},
      {"agent/steps/0", {"file", "features", "macs"}},
      {"convolutions/0", {"conv", "role", "reason", "macs"}},
      {"decisions/0", {"conv", "widths", "stage"}},
      {"stages/0", {"decision", "input_decisions", "inputs", "outputs", "branches"}},
      {"stages/0/branches/0", {"input_options", "output_option", "file", "macs", "weight_bytes"}},
      {"files/1", {"path", "bytes", "sha256"}},
      {"verification", {"samples", "tolerance"}},
      {"calibration", {"data", "samples", "backbone_accuracy", "full_accuracy", "points"}},
      {"calibration/points/0", {"penalty", "accuracy", "macs_share", "option_counts"}},
      {"preprocessing", {"colour", "size", "mean", "std"}}};
  for (const auto& [object, keys] : required) {
    for (const char* key : keys) {
      Json manifest = sample_manifest();
      INFO(object << " " << key);
      REQUIRE(remove_key(manifest, object, key));
      CHECK_THAT(manifest_refusal(manifest), Catch::Contains(std::string("lacks ") + key));
    }
  }
  const std::pair<const char*, std::vector<const char*>> optional[] = {
      {"", {"precision", "agent_trained", "precision_report", "calibration", "preprocessing", "classes"}},
      {"outputs/0", {"dtype", "follows", "axis", "sizes"}},
      {"agent", {"penalty_range"}},
      {"verification",
       {"branches", "max_branch_deviation", "worst_branch", "paths", "max_path_deviation", "agent_decisions",
        "agent_decisions_equal"}},
      {"preprocessing", {"shorter_side"}}};
  for (const auto& [object, keys] : optional) {
    for (const char* key : keys) {
      Json manifest = sample_manifest();
      INFO(object << " " << key);
      REQUIRE(remove_key(manifest, object, key));
      CHECK(manifest_refusal(manifest) == "");
    }
  }
}

TEST_CASE("unknown keys, unless the file is newer") {
  for (const char* place : {"x", "inputs/0/x", "agent/x", "agent/steps/0/x", "convolutions/0/x", "decisions/0/x",
                            "stages/0/x", "stages/0/branches/0/x", "files/0/x", "verification/x", "calibration/x",
                            "calibration/points/0/x", "preprocessing/x"}) {
    Json manifest = sample_manifest();
    at(manifest, place) = value("1");
    INFO(place);
    CHECK_THAT(manifest_refusal(manifest), Catch::Contains("\"x\""));
    if (std::string(place) != "inputs/0/x") CHECK(manifest_refusal(manifest, true) == "");
  }
  Json manifest = sample_manifest();
  at(manifest, "manifest_sha256") = value("7");  // whatever it is: it was checked before
  CHECK(manifest_refusal(manifest) == "");
}

TEST_CASE("numbers are as strict as in Python") {
  const char* counts[] = {"convolutions/0/macs",
                          "agent/steps/0/macs",
                          "stages/0/branches/0/macs",
                          "stages/0/branches/0/weight_bytes",
                          "files/0/bytes",
                          "verification/samples",
                          "verification/branches",
                          "calibration/samples",
                          "calibration/points/0/option_counts/0/0"};
  for (const char* place : counts) {
    INFO(place);
    for (const char* text : kNumbers) CHECK(changed(place, text) != "");
    CHECK(changed(place, "-1") != "");
    CHECK(changed(place, "1.0") != "");
    CHECK(changed(place, "0") == "");
    CHECK(changed(place, "9223372036854775807") == "");
  }
  for (const char* place : {"agent/state_size", "inputs/0/shape/0", "outputs/0/axis", "decisions/0/stage"}) {
    INFO(place);
    for (const char* text : kNumbers) CHECK(changed(place, text) != "");
    for (const char* text : {"0", "-1", "1.0", "2147483648"}) CHECK(changed(place, text) != "");
  }
  CHECK(changed("agent/state_size", "2147483647") == "");
  CHECK(changed("groups", "1") != "");
  CHECK(changed("groups", "2147483648") != "");
  CHECK(changed("macs", "0") != "");
  CHECK(changed("macs", "9223372036854775807") == "");
  for (const char* place :
       {"agent/penalty", "agent/penalty_range/0", "verification/tolerance", "calibration/full_accuracy",
        "calibration/points/0/accuracy", "preprocessing/mean/1", "preprocessing/std/1"}) {
    INFO(place);
    for (const char* text : kNumbers) CHECK(changed(place, text) != "");
    CHECK(changed(place, "1") == "");
    CHECK(changed(place, "1e-300") == "");
  }
  for (const char* text : {"0", "-1", "-0.0", "0.0"}) CHECK(changed("preprocessing/std/0", text) != "");
}

TEST_CASE("null, lists and words") {
  for (const char* place :
       {"outputs/0/dtype", "outputs/0/axis", "outputs/0/sizes", "precision", "agent_trained", "agent/steps", "files",
        "stages/0/outputs", "verification", "verification/branches", "agent"}) {
    INFO(place);
    CHECK(changed(place, "null") != "");
  }
  for (const char* place :
       {"outputs/0/follows", "agent/penalty_range", "convolutions/0/decision", "convolutions/0/widths",
        "precision_report", "calibration", "preprocessing", "classes", "preprocessing/shorter_side",
        "verification/worst_branch", "verification/max_branch_deviation"}) {
    INFO(place);
    CHECK(changed(place, "null") == "");
  }
  CHECK(changed("precision", "\"fp64\"") != "");
  CHECK(changed("precision", "\"bf16\"") == "");
  CHECK(changed("convolutions/0/role", "\"none\"") != "");
  CHECK(changed("convolutions/0/role", "\"follower\"") == "");
  CHECK(changed("preprocessing/colour", "\"BGR\"") == "");
  CHECK(changed("preprocessing/colour", "\"HSV\"") != "");
  CHECK(changed("outputs/0/dtype", "\"int64\"") != "");
  CHECK(changed("agent_trained", "0") != "");
  CHECK(changed("agent_trained", "false") == "");
  CHECK(changed("producer", "7") != "");
  CHECK(changed("agent/penalty_range", "[1]") != "");
  CHECK(changed("agent/penalty_range", "[1,2,3]") != "");
  CHECK(changed("preprocessing/size", "[4]") != "");
  CHECK(changed("inputs", "[]") != "");
  CHECK(changed("inputs", R"([{"name":"images","shape":[3,4,4]},{"name":"images","shape":[3,4,4]}])") != "");
  CHECK(changed("calibration/points", "[]") != "");
  CHECK(changed("stages/0/branches", "[]") != "");
  CHECK(changed("stages/0/inputs", "[]") != "");
  CHECK(changed("agent", "[]") != "");
  CHECK(changed("classes", R"({"a":"b"})") != "");
  for (const char* sha : {"", "0", "g000000000000000000000000000000000000000000000000000000000000000",
                          "A000000000000000000000000000000000000000000000000000000000000000",
                          "0000000000000000000000000000000000000000000000000000000000000000\\"
                          "n"}) {
    CHECK(changed("files/0/sha256", "\"" + std::string(sha) + "\"") != "");
  }
  CHECK(changed("files/0/sha256", "\"" + std::string(64, 'f') + "\"") == "");
}

TEST_CASE("tensors of 2^31 values a sample or more") {
  for (const char* shape : {"[2147483647,2]", "[65536,32768]", "[2147483647,2147483647,2147483647]"}) {
    CHECK_THAT(changed("stages/1/outputs/1/shape", shape), Catch::Contains("2^31"));
  }
  // Sizes count too, and where nothing is followed.
  CHECK_THAT(changed("stages/0/outputs/0/sizes", "[134217728]"), Catch::Contains("2^31"));
  CHECK_THAT(changed("stages/0/outputs/0/sizes", "[134217727]"), !Catch::Contains("2^31"));
  CHECK_THAT(engines_changed("plan/tensors/5/shape", "[65536,32768]"), Catch::Contains("2^31"));
  CHECK(engines_changed("plan/tensors/5/shape", "[65536,32767]") == "");
}

TEST_CASE("parts that do not fit together") {
  const std::pair<const char*, std::pair<const char*, const char*>> table[] = {
      {"decisions/0/stage", {"2", "another stage"}},
      {"decisions/0/widths", {"[4,2]", "rise"}},
      {"decisions/0/widths", {"[2,2]", "rise"}},
      {"decisions/0/widths", {"[2]", "elements"}},
      {"decisions/0/widths", {"[2,5]", "widths"}},
      {"decisions/0/conv", {"\"stem\"", "widths"}},
      {"convolutions/1/decision", {"1", "widths"}},
      {"convolutions/1/decision", {"null", "widths"}},
      {"convolutions", {"[]", "widths"}},
      {"groups", {"3", "groups"}},
      {"agent/steps", {"[]", "steps"}},
      {"inputs/0/dtype", {"\"float16\"", "float32"}},
      {"inputs/0/follows", {"0", "follows"}},
      {"outputs/0/follows", {"0", "follows"}},
      {"outputs/0/shape", {"[3]", "no stage makes"}},
      {"outputs/0/name", {"\"none\"", "no stage makes"}},
      {"outputs/0/axis", {"2", "no stage makes"}},
      {"outputs/0/sizes", {"[1]", "no stage makes"}},
      {"stages/0/decision", {"0", "another decision"}},
      {"stages/1/decision", {"null", "another decision"}},
      {"stages/1/decision", {"1", "another decision"}},
      {"stages/0/input_decisions", {"[0]", "input decisions"}},
      {"stages/1/input_decisions", {"[0]", "input decisions"}},
      {"stages/1/input_decisions", {"[9223372036854775807]", "input decisions"}},
      {"stages/0/inputs/0/shape", {"[3,4,5]", "nothing before makes so"}},
      {"stages/1/inputs/0/name", {"\"y\"", "nothing before makes so"}},
      {"stages/1/inputs/0/dtype", {"\"float16\"", "nothing before makes so"}},
      {"agent/steps/0/features", {"\"x\"", "features"}},
      {"agent/steps/0/features", {"\"y\"", "features"}},
      {"stages/0/outputs/1/follows", {"0", "without the option"}},
      {"stages/0/outputs/0/name", {"\"images\"", "again"}},
      {"stages/0/outputs/0/name", {"\"pooled\"", "again"}},
      {"stages/1/outputs/1/follows", {"1", "without the option"}},
      {"stages/1/outputs/1/sizes", {"[2,3]", "sizes"}},
      {"stages/1/outputs/1/sizes", {"[4,4]", "sizes"}},
      {"stages/1/outputs/1/sizes", {"[4]", "sizes"}},
      {"stages/1/outputs/1/sizes", {"[1,2,4]", "sizes"}},
      {"stages/1/outputs/1/sizes", {"[]", "sizes"}},
      {"stages/1/outputs/1/axis", {"4", "sizes"}},
      {"stages/1/outputs/1/axis", {"2147483647", "sizes"}},
      {"stages/1/outputs/1/name", {"\"agent/y\"", "agent's"}},
      {"stages/1/branches/0/output_option", {"2", "branch"}},
      {"stages/1/branches/0/output_option", {"3", "branch"}},
      {"stages/1/branches/0/output_option", {"null", "branch"}},
      {"stages/1/branches/0/input_options", {"[1]", "branch"}},
      {"stages/0/branches/0/output_option", {"1", "branch"}},
      {"stages/0/branches/0/file", {"\"stages/00/none.onnx\"", "not listed"}},
      {"stages/0/branches/0/file", {"\"weights.bin\"", ".onnx"}},
      {"agent/steps/0/file", {"\"none.onnx\"", "not listed"}},
      {"files/0/path", {"\"weights\"", "weights.bin"}},
      {"files/1/path", {"\"weights.bin\"", "twice"}},
      {"calibration/points/1/penalty", {"-0.5", "rise"}},
      {"calibration/points/1/penalty", {"-1", "rise"}},
      {"preprocessing/size", {"[4,5]", "shape"}},
      {"preprocessing/size", {"[4,6]", "shorter_side"}},
      {"preprocessing/colour", {"\"L\"", "values"}},
      {"preprocessing/mean", {"[0,0]", "values"}},
      {"preprocessing/std", {"[1]", "values"}},
      {"classes", {"[\"a\"]", "classes"}},
      {"classes", {"[]", "classes"}}};
  for (const auto& [place, change] : table) {
    INFO(place << " " << change.first);
    CHECK_THAT(changed(place, change.first), Catch::Contains(change.second));
  }
  CHECK_THAT(changed("stages/1/branches/1/macs", "-1"), Catch::Contains("stages.1.branches.1.macs is -1"));
}

TEST_CASE("features of a later decision are at full width") {
  Json manifest = sample_manifest();
  const auto append = [&](const char* place, const char* text) { at(manifest, place).array()->push_back(value(text)); };
  append("convolutions", R"({"conv":"late","role":"prunable","reason":"","macs":1,"decision":1,"widths":[1,2]})");
  append("decisions", R"({"conv":"late","widths":[1,2],"stage":2})");
  append("agent/steps", R"({"file":"agent/step_00.onnx","features":"z","macs":7})");
  append("stages/1/outputs", R"({"name":"z","shape":[4]})");
  append("stages",
         R"({"decision":1,"input_decisions":[],"inputs":[{"name":"z","shape":[4]}],"outputs":[],"branches":[
    {"input_options":[],"output_option":1,"file":"stages/01/out1.onnx","macs":1,"weight_bytes":0},
    {"input_options":[],"output_option":2,"file":"stages/01/out2.onnx","macs":1,"weight_bytes":0}]})");
  CHECK(manifest_refusal(manifest) == "");
  at(manifest, "stages/1/outputs/2") = value(R"({"name":"z","shape":[4],"follows":0,"sizes":[2,4]})");
  at(manifest, "stages/2/inputs/0") = value(R"({"name":"x","shape":[6,4,4]})");
  CHECK_THAT(manifest_refusal(manifest), Catch::Contains("features"));
}

TEST_CASE("huge counts of choices are refused, not made") {
  Json manifest = sample_manifest();
  at(manifest, "stages/1/branches/1/output_option") = value("2147483647");
  CHECK_THAT(manifest_refusal(manifest), Catch::Contains("branch"));
  Json engines = sample_engines();
  at(engines, "plan/steps/1/option_decisions") = value("[9223372036854775807,0]");
  CHECK(engines_refusal(engines) == "");  // whether it fits is the plan's check
}

TEST_CASE("a precision report is checked, and not kept") {
  const std::string report =
      R"("data":null,"images":1,"penalties":[0,0.5],"decisions":2,"decisions_equal":2,"margin_median":1,"margin_p5":0.5,)"
      R"("drift_median":0,"drift_p99":0,"at_risk":0,"output_drift_max":0,"output_drift_mean":1e-3)";
  CHECK(changed("precision_report", "{" + report + "}") == "");
  CHECK(changed("precision_report", "{" + report + R"(,"accuracy":null,"accuracy_fp32":0.5,"by_penalty":[]})") == "");
  CHECK(changed("precision_report",
                "{" + report + R"(,"by_penalty":[{"penalty":0,"decisions_equal":1,"accuracy":1}]})") == "");
  CHECK(changed("precision_report", "{" + report + R"(,"by_penalty":[{"penalty":0}]})") != "");
  CHECK(changed("precision_report", "{" + report + R"(,"by_penalty":[{"penalty":0,"decisions_equal":1,"x":1}]})") !=
        "");
  CHECK(changed("precision_report", "{" + report + R"(,"by_penalty":null})") != "");
  CHECK(changed("precision_report", "{" + report + R"(,"x":1})") != "");
  CHECK(changed("precision_report", "{" + report.substr(12) + "}") != "");
  CHECK(changed("precision_report", "{}") != "");
}
