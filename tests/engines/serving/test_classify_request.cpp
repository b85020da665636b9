#include <catch2/catch.hpp>
#include <cstring>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "classify_request.hpp"
#include "rnp/error.hpp"

namespace {

rnp::Manifest small_manifest() {
  rnp::Manifest manifest;
  manifest.input.shape = {1, 2, 2};
  manifest.agent.penalty = 0.25;
  return manifest;
}

std::string nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

std::string tensor(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

}  // namespace

TEST_CASE("images come flat or nested, with or without a penalty") {
  const rnp::Manifest manifest = small_manifest();
  const std::vector<float> image{1, 2.5F, -3, 4};
  const auto flat = examples::request_from_json(R"({"image": [1, 2.5, -3, 4]})", manifest);
  CHECK(flat.image == image);
  CHECK(flat.penalty == 0.25F);
  const auto deep = examples::request_from_json(R"({"penalty": -0.5, "image": [[[1, 2.5], [-3, 4]]]})", manifest);
  CHECK(deep.image == image);
  CHECK(deep.penalty == -0.5F);
  const auto raw = examples::request_from_tensor(tensor(image), 0.75, std::nullopt, manifest);
  CHECK(raw.image == image);
  CHECK(raw.penalty == 0.75F);
  CHECK(examples::request_from_json(R"({"image": [1, 2, 3, 4], "penalty": null})", manifest).penalty == 0.25F);
}

TEST_CASE("JSON that does not fit is refused with what was expected") {
  const rnp::Manifest manifest = small_manifest();
  const struct {
    std::string body;
    const char* words;
  } cases[] = {
      {"", "no JSON"},
      {"{\"image\": [1, 2, 3, 4]", "no JSON"},
      {"{\"image\": [1, 2, 3, 4]} {}", "no JSON"},
      {"{\"image\": [1, 2, 3, 1e999]}", "no JSON"},
      {"{\"image\": [1, 2, 3, NaN]}", "no JSON"},
      {"{\"image\": \"\xff\"}", "no JSON"},
      {"[1, 2, 3, 4]", "no JSON object"},
      {"3", "no JSON object"},
      {"{}", "image is missing"},
      {R"({"image": null})", "expected 4 numbers, flat or nested as [1, 2, 2]; got null"},
      {R"({"image": "1234"})", "got string"},
      {R"({"image": {}})", "got object"},
      {R"({"image": []})", "got an array [0]"},
      {R"({"image": [1, 2, 3]})", "got an array [3]"},
      {R"({"image": [1, 2, 3, 4, 5]})", "got an array [5]"},
      {R"({"image": [[1, 2], [3, 4]]})", "got an array [2, 2]"},
      {R"({"image": [[[1, 2], [3]]]})", "got an array [1, 2, 2]"},
      {R"({"image": [[[1, 2], [3, [4]]]]})", "values that are no numbers"},
      {R"({"image": [[[[1], [2]], [[3], [4]]]]})", "got an array [1, 2, 2, 1]"},
      {R"({"image": [1, 2, 3, "4"]})", "values that are no numbers"},
      {R"({"image": [1, 2, 3, true]})", "values that are no numbers"},
      {R"({"image": [1, 2, 3, 1e39]})", "value 3 is not a finite float32"},
      {R"({"image": [1, 2, 3, 4], "penalty": "0"})", "penalty is no number"},
      {R"({"image": [1, 2, 3, 4], "penalty": 1e39})", "penalty is not a finite"},
      {R"({"image": [1, 2, 3, 4], "target_macs": 0.5})", "needs a calibrated"},
      {R"({"image": [1, 2, 3, 4], "penalty": 1, "target_macs": 0.5})", "pass one of them"},
      {R"({"image": [1, 2, 3, 4], "size": 3})", "\"size\" is no field"},
      {"{\"image\": " + nested(9) + "}", "more than 8 deep"},
      {"{\"image\": " + std::string(100'000, '[') + "}", "more than 8 deep"},
  };
  for (const auto& c : cases) {
    INFO(c.body.substr(0, 80));
    try {
      examples::request_from_json(c.body, manifest);
      FAIL("it was read");
    } catch (const rnp::Error& err) {
      CHECK(err.code() == rnp::ErrorCode::kInput);
      CHECK_THAT(err.what(), Catch::Contains(c.words));
    }
  }
}

TEST_CASE("tensors of another size, or not finite, are refused") {
  const rnp::Manifest manifest = small_manifest();
  const std::vector<float> image{1, 2, 3, 4};
  for (const std::size_t size : {0, 15, 17, 32}) {
    std::string body = tensor(image) + tensor(image);
    body.resize(size);
    CHECK_THROWS_WITH(examples::request_from_tensor(body, std::nullopt, std::nullopt, manifest),
                      "expected 16 bytes, float32 [1, 2, 2]; got " + std::to_string(size));
  }
  for (const float bad : {HUGE_VALF, -HUGE_VALF, NAN}) {
    CHECK_THROWS_WITH(examples::image_from_tensor(tensor({1, bad, 3, 4}), manifest), Catch::Contains("value 1"));
  }
}

TEST_CASE("command lines") {
  const char* argv[] = {"program", "a", "--port", "80", "--penalty", "-0.5", "--quiet", "b"};
  const examples::Arguments arguments(8, argv, {"port", "penalty"}, {"quiet", "json"});
  CHECK(arguments.alone() == std::vector<std::string>{"a", "b"});
  CHECK(arguments.integer("port", 1, 0, 65535) == 80);
  CHECK(arguments.integer("queue", 7, 0, 10) == 7);
  CHECK(arguments.number("penalty") == -0.5);
  CHECK(!arguments.number("queue"));
  CHECK(arguments.has("quiet"));
  CHECK(!arguments.has("json"));
  CHECK(arguments.text("host", "here") == "here");
  CHECK_THROWS_WITH(arguments.integer("port", 1, 0, 79), Catch::Contains("0 to 79"));
  CHECK_THROWS_WITH(arguments.integer("penalty", 1, -2, 79), Catch::Contains("an integer"));

  const struct {
    std::vector<const char*> words;
    const char* says;
  } cases[] = {
      {{"program", "--what"}, "--what is no option"},
      {{"program", "--port"}, "--port needs a value"},
      {{"program", "--port", "1", "--port", "2"}, "--port is given twice"},
  };
  for (const auto& c : cases) {
    CHECK_THROWS_WITH(examples::Arguments(static_cast<int>(c.words.size()), c.words.data(), {"port"}, {}),
                      Catch::Contains(c.says));
  }
}

TEST_CASE("numbers are all of their text, and finite") {
  CHECK(examples::number_from("0.5") == 0.5);
  CHECK(examples::number_from("-1e-3") == -1e-3);
  for (const char* text : {"", " 1", "1 ", "1x", "nan", "inf", "1e999", "1,5", "0x"}) {
    INFO(text);
    CHECK(!examples::number_from(text));
  }
}
