#include <catch2/catch.hpp>
#include <string>
#include <utility>

#include "json.hpp"
#include "rnp/error.hpp"

using namespace rnp;

namespace {

std::string canonical(const std::string& text) { return canonical_json(parse_json(text, "test")); }

// Of a value in an object.
std::string canonical_value(const std::string& text) {
  const std::string all = canonical("{\"v\":" + text + "}");
  return all.substr(5, all.size() - 6);
}

std::string refusal(const std::string& text) {
  try {
    parse_json(text, "test");
  } catch (const Error& err) {
    CHECK(err.code() == ErrorCode::kJson);
    return err.what();
  }
  return "";
}

std::string nested(std::size_t levels, const std::string& open, const std::string& close) {
  std::string text = "{\"a\":";
  for (std::size_t i = 1; i < levels; ++i) text += open;
  text += "0";
  for (std::size_t i = 1; i < levels; ++i) text += close;
  return text + "}";
}

}  // namespace

TEST_CASE("floats are written as Python writes them") {
  const std::pair<const char*, const char*> table[] = {
      {"0.0", "0.0"},
      {"-0.0", "-0.0"},
      {"1.0", "1.0"},
      {"-1.5", "-1.5"},
      {"0.1", "0.1"},
      {"1e5", "100000.0"},
      {"1e15", "1000000000000000.0"},
      {"1e16", "1e+16"},
      {"9999999999999998.0", "9999999999999998.0"},
      {"9007199254740993.0", "9007199254740992.0"},
      {"123456789012345680.0", "1.2345678901234568e+17"},
      {"1e17", "1e+17"},
      {"1.5e300", "1.5e+300"},
      {"-1e-4", "-0.0001"},
      {"0.0001", "0.0001"},
      {"0.00012", "0.00012"},
      {"1e-5", "1e-05"},
      {"0.00001234", "1.234e-05"},
      {"5e-324", "5e-324"},
      {"1e-400", "0.0"},
      {"2.2250738585072014e-308", "2.2250738585072014e-308"},
      {"1.7976931348623157e308", "1.7976931348623157e+308"},
      {"0.30000000000000004", "0.30000000000000004"},
      {"1e22", "1e+22"},
      {"1e23", "1e+23"},
      {"1.1E+2", "110.0"},
      {"100e-2", "1.0"},
      {"4.35", "4.35"},
      {"2.5e-7", "2.5e-07"},
      {"0.000123456789012345678", "0.00012345678901234567"},
      {"12345.678", "12345.678"},
      {"1e100", "1e+100"},
      {"-2e-9", "-2e-09"},
      {"72057594037927945.0", "7.205759403792795e+16"},
      {"9.5367431640625e-07", "9.5367431640625e-07"},
      {"1E0", "1.0"},
      {"1.09285889832135532e+07", "10928588.983213553"},
      {"1.41866135258496140e+134", "1.4186613525849614e+134"},
      {"-7.57196855605586746e-74", "-7.571968556055867e-74"},
      {"-1.40747051882613637e+113", "-1.4074705188261364e+113"},
      {"-3.33397454730426136e-121", "-3.3339745473042614e-121"},
      {"-1.23421807662113954e-271", "-1.2342180766211395e-271"},
      {"-5.12686400424493511e+111", "-5.126864004244935e+111"},
      {"-2.15202175798442271e+32", "-2.1520217579844227e+32"},
      {"1.39960163039770102e-01", "0.1399601630397701"},
      {"1.01853664031721996e-244", "1.01853664031722e-244"},
      {"2.97045981862345774e-115", "2.9704598186234577e-115"},
      {"3.05341833387268233e+150", "3.0534183338726823e+150"},
      {"-2.30277822281634631e+146", "-2.3027782228163463e+146"},
      {"3.56409621163655981e+161", "3.56409621163656e+161"},
      {"6.35292901720745262e-183", "6.352929017207453e-183"},
      {"3.14657586560532387e-01", "0.3146575865605324"},
      {"-1.27617248017718123e-23", "-1.2761724801771812e-23"},
      {"2.08686681762253360e+195", "2.0868668176225336e+195"},
      {"3.66898827745703991e-84", "3.66898827745704e-84"},
      {"-1.38912227337019703e+145", "-1.389122273370197e+145"},
      {"1.75487154331651020e+172", "1.7548715433165102e+172"},
      {"-1.03951424156321175e+15", "-1039514241563211.8"},
      {"5.78040217714115058e-220", "5.7804021771411506e-220"},
      {"-2.84974787161075759e-163", "-2.8497478716107576e-163"},
      {"0.023490504093223327", "0.023490504093223327"},
      {"-7.355182915661507e-06", "-7.355182915661507e-06"},
      {"-5.810872350097642", "-5.810872350097642"},
      {"0.9202542004349994", "0.9202542004349994"},
      {"7448.155308736037", "7448.155308736037"},
      {"-3.7269726453009273", "-3.7269726453009273"},
      {"784469377416211.8", "784469377416211.8"},
      {"0.25146039135425546", "0.25146039135425546"},
  };
  for (const auto& [written, expected] : table) {
    INFO(written);
    CHECK(canonical_value(written) == expected);
    CHECK(canonical_value(expected) == expected);
  }
}

TEST_CASE("integers stay integers") {
  for (const char* text : {"0", "-1", "9223372036854775807", "-9223372036854775808", "1000000"}) {
    CHECK(canonical_value(text) == text);
  }
  CHECK(canonical_value("-0") == "0");
  const Json json = parse_json(R"({"a":1,"b":1.0,"c":true,"d":null})", "test");
  const Json::Object& object = *json.object();
  CHECK(*object.at("a").integer() == 1);
  CHECK(object.at("a").real() == nullptr);
  CHECK(*object.at("b").real() == 1.0);
  CHECK(object.at("b").integer() == nullptr);
  CHECK(*object.at("c").boolean());
  CHECK(object.at("c").integer() == nullptr);
  CHECK(object.at("d").is_null());
  CHECK_FALSE(object.at("a") == object.at("b"));
}

TEST_CASE("strings are escaped as Python escapes them") {
  CHECK(canonical_value(R"("\u0000\u0001\u001f\u007f \" \\ \/ \n\r\t\f\b \u00e4 \ud83d\ude00")") ==
        "\"\\u0000\\u0001\\u001f\x7f \\\" \\\\ / \\n\\r\\t\\f\\b \xc3\xa4 "
        "\xf0\x9f\x98\x80\"");
  CHECK(json_quoted("a\x1b\"") == "\"a\\u001b\\\"\"");
}

TEST_CASE("keys are sorted by code point") {
  CHECK(canonical(" {\"b\" : [ 1 , {} , [] ],\n\t\"a\":{\"z\":false,\"\":true}, "
                  "\"\xc3\xa4\":1, \"B\":2, "
                  "\"\\uffff\":3, \"\xf0\x9f\x98\x80\":4}\r\n ") ==
        "{\"B\":2,\"a\":{\"\":true,\"z\":false},\"b\":[1,{},[]],\"\xc3\xa4\":1,"
        "\"\xef\xbf\xbf\":3,\"\xf0\x9f\x98\x80\":4}");
}

TEST_CASE("the hash is of the object without one key, at the top alone") {
  const Json json = parse_json(R"({"b":{"hash":"x"},"hash":"y","a":1})", "test");
  // sha256 of {"a":1,"b":{"hash":"x"}}
  CHECK(canonical_sha256(json, "hash") == canonical_sha256(parse_json(R"({"a":1,"b":{"hash":"x"}})", "test"), "hash"));
  CHECK(canonical_sha256(json, "hash") == "9dc5937db13da91ad6e97ca273619e64a4dd0eb7350e5d29b6b4f07a3da87e73");
}

TEST_CASE("what is no JSON as the format wants it") {
  const std::pair<std::string, const char*> table[] = {
      {"", "byte"},
      {"  ", "byte"},
      {"[]", "top level"},
      {"1", "top level"},
      {"null", "top level"},
      {"\"a\"", "top level"},
      {"{} {}", "byte"},
      {"{}x", "byte"},
      {"{", "byte"},
      {"{\"a\":1,}", "byte"},
      {"{\"a\" 1}", "byte"},
      {"{a:1}", "byte"},
      {"{'a':1}", "byte"},
      {"{\"a\":[1,]}", "byte"},
      {"{\"a\":01}", "byte"},
      {"{\"a\":+1}", "byte"},
      {"{\"a\":1.}", "byte"},
      {"{\"a\":.5}", "byte"},
      {"{\"a\":1e}", "byte"},
      {"{\"a\":-}", "byte"},
      {"{\"a\":0x1}", "byte"},
      {"{\"a\":NaN}", "byte"},
      {"{\"a\":Infinity}", "byte"},
      {"{\"a\":-Infinity}", "byte"},
      {"{\"a\":True}", "byte"},
      {"{\"a\":1e400}", "out of range"},
      {"{\"a\":-1e400}", "out of range"},
      {"{\"a\":9223372036854775808}", "out of range"},
      {"{\"a\":-9223372036854775809}", "out of range"},
      {"{\"a\":18446744073709551616}", "out of range"},
      {"{\"a\":" + std::string(5000, '9') + "}", "out of range"},
      {"{\"a\":1,\"a\":2}", "twice"},
      {"{\"a\":1,\"\\u0061\":2}", "twice"},
      {"{\"b\":{\"a\":1,\"a\":1}}", "twice"},
      {"\xef\xbb\xbf{}", "byte order mark"},
      {std::string("{}\0", 3), "NUL"},
      {std::string("{\"a\":\"\0\"}", 9), "NUL"},
      {std::string("{\0}", 3), "NUL"},
      {"{\"a\":\"\x01\"}", "byte"},
      {"{\"a\":\"\n\"}", "byte"},
      {"{\"a\":\"\\x\"}", "byte"},
      {"{\"a\":\"\\u12\"}", "byte"},
      {"{\"a\":\"\\ud800\"}", "byte"},
      {"{\"a\":\"\\udc00\"}", "byte"},
      {"{\"a\":\"\\ud800\\ud800\"}", "byte"},
      {"{\"\\ud800\":1}", "byte"},
      {"{\"a\":\"\xff\"}", "byte"},
      {"{\"a\":\"\xc0\x80\"}", "byte"},          // overlong
      {"{\"a\":\"\xed\xa0\x80\"}", "byte"},      // a surrogate
      {"{\"a\":\"\xf4\x90\x80\x80\"}", "byte"},  // above U+10FFFF
      {"{\"a\":\"\xc3\"}", "byte"},
      {"{\xc2\xa0}", "byte"},  // white space of Unicode is none of JSON
      {"{/**/}", "byte"},
      {"{} // end", "byte"},
      {"{\f}", "byte"},
  };
  for (const auto& [text, reason] : table) {
    INFO(text);
    CHECK_THAT(refusal(text), Catch::Contains(reason));
  }
}

TEST_CASE("nesting ends at 32 levels, the outermost counted") {
  CHECK(refusal(nested(32, "[", "]")) == "");
  CHECK(refusal(nested(32, "{\"a\":", "}")) == "");
  CHECK(refusal(nested(33, "[", "]")) != "");
  CHECK(refusal(nested(33, "{\"a\":", "}")) != "");
  CHECK(refusal(nested(1000000, "[", "]")) != "");
  CHECK(refusal("{\"a\":" + std::string(31, '[') + std::string(31, ']') + "}") == "");
  CHECK(refusal("{\"a\":" + std::string(32, '[') + std::string(32, ']') + "}") != "");  // empty ones count
}

TEST_CASE("a text that is too long is refused unread") {
  CHECK_THAT(refusal(std::string(kMaxJsonBytes + 1, ' ')), Catch::Contains("67108864"));
}
