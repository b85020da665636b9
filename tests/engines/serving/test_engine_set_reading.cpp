#include "engine_set_reading.hpp"

#include <catch2/catch.hpp>
#include <string>
#include <utility>
#include <vector>

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
std::string engines_refusal(const Json& json) {
  try {
    engine_set_from_json(json, "FILE", false);
  } catch (const Error& err) {
    CHECK(err.code() == ErrorCode::kFields);
    CHECK_THAT(err.what(), Catch::StartsWith("FILE: "));
    return err.what();
  }
  return "";
}

std::string engines_changed(const std::string& place, const std::string& text) {
  Json engines = sample_engines();
  at(engines, place) = value(text);
  return engines_refusal(engines);
}

bool remove_key(Json& json, const std::string& object, const std::string& key) {
  return at(json, object).object()->erase(key) == 1;
}

}  // namespace

TEST_CASE("an engine set is read with its values and defaults") {
  const EngineSetManifest engines = engine_set_from_json(sample_engines(), "FILE", false);
  CHECK(engines.backend == "onnxruntime");
  CHECK(engines.build_options.at("a") == "b");
  CHECK_FALSE(engines.max_batch);
  CHECK(engines.plan.tensors[3].dtype == DType::kInt64);
  CHECK(engines.plan.steps[0].inputs.at("i") == "images");
  CHECK(engines.plan.steps[0].decides == 0);
  CHECK_FALSE(engines.plan.steps[0].agent_only);
  CHECK(engines.plan.steps[1].in_place.at("y") == "x");
  CHECK(engines.plan.steps[1].pieces[1].options == std::vector<std::int64_t>{2});
  for (const char* key :
       {"decisions", "decisions_equal", "max_deviation", "max_batch", "build_options", "environment"}) {
    Json json = sample_engines();
    REQUIRE(remove_key(json, "", key));
    CHECK(engines_refusal(json) == "");
  }
  for (const char* key : {"backend", "bundle_sha256", "fingerprint", "plan", "files", "producer", "format_version"}) {
    Json json = sample_engines();
    REQUIRE(remove_key(json, "", key));
    CHECK_THAT(engines_refusal(json), Catch::Contains("lacks"));
  }
}

TEST_CASE("engine sets that are not as the format wants them") {
  const std::pair<const char*, const char*> table[] = {{"backend", "\"torch\""},
                                                       {"bundle_sha256", "\"0\""},
                                                       {"fingerprint", "{\"a\":1}"},
                                                       {"fingerprint", "[]"},
                                                       {"fingerprint", "null"},
                                                       {"max_batch", "0"},
                                                       {"max_deviation", "\"0\""},
                                                       {"decisions", "null"},
                                                       {"environment", "null"},
                                                       {"plan/x", "1"},
                                                       {"plan/tensors", "{}"},
                                                       {"plan/tensors/0/dtype", "\"int8\""},
                                                       {"plan/tensors/0/name", "\"images\""},  // twice
                                                       {"plan/steps/0/x", "1"},
                                                       {"plan/steps/0/inputs/i", "\"none\""},
                                                       {"plan/steps/0/outputs/x", "\"none\""},
                                                       {"plan/steps/0/inputs", "[]"},
                                                       {"plan/steps/0/decides", "-1"},
                                                       {"plan/steps/0/agent_only", "null"},
                                                       {"plan/steps/1/in_place/y", "\"outputs\""},
                                                       {"plan/steps/1/in_place/x", "\"x\""},
                                                       {"plan/steps/1/in_place", "null"},
                                                       {"plan/steps/1/pieces/0/options", "[0]"},
                                                       {"plan/steps/1/pieces/0/file", "\"none\""},
                                                       {"plan/steps/1/pieces/0/x", "1"},
                                                       {"files/1/path", "\"weights.bin\""},
                                                       {"manifest_sha256", "\"\""}};
  for (const auto& [place, text] : table) {
    INFO(place << " " << text);
    CHECK(engines_changed(place, text) != "");
  }
  CHECK(engines_changed("plan/tensors/0/dtype", "\"int32\"") == "");
  CHECK(engines_changed("max_batch", "8") == "");
  CHECK(engines_changed("backend", "\"tensorrt\"") == "");
}
