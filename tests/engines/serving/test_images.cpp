#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "images.hpp"
#include "preprocessing.hpp"
#include "rnp/error.hpp"

using examples::Image;
using Bytes = std::vector<std::uint8_t>;

namespace {

// As text, with bytes that a literal cannot hold.
std::string text(const char* head, const Bytes& raster) { return head + std::string(raster.begin(), raster.end()); }

}  // namespace

TEST_CASE("netpbm images of each kind are read") {
  const struct {
    const char* name;
    std::string bytes;
    std::size_t height, width, channels;
    Bytes pixels;
  } cases[] = {
      {"plain grey", "P2\n3 2\n255\n0 1 2\n253 254 255\n", 2, 3, 1, {0, 1, 2, 253, 254, 255}},
      {"plain colour", "P3 1 2 255 1 2 3 4 5 6", 2, 1, 3, {1, 2, 3, 4, 5, 6}},
      {"grey", text("P5\n2 1\n255\n", {9, 200}), 1, 2, 1, {9, 200}},
      {"colour", text("P6 1 1 255\n", {7, 8, 255}), 1, 1, 3, {7, 8, 255}},
      {"a raster that begins like a space", text("P5 2 1 255\n", {'\n', ' '}), 1, 2, 1, {10, 32}},
      {"more behind the image", text("P5 1 1 255\n", {1, 2, 3}), 1, 1, 1, {1}},
      {"comments", "P2 # grey\n#\r2 # width\n1\n# maximum next\n255\n5 # five\n6", 1, 2, 1, {5, 6}},
      {"a maximum below 255", "P2 4 1 15\n0 1 7 15", 1, 4, 1, {0, 17, 119, 255}},
      {"halves go to even", "P2 2 1 2\n0 1", 1, 2, 1, {0, 128}},
      {"values above the maximum", text("P5 2 1 100\n", {100, 101}), 1, 2, 1, {255, 255}},
      {"two levels", "P2 2 1 1\n0 1", 1, 2, 1, {0, 255}},
  };
  for (const auto& c : cases) {
    INFO(c.name);
    const Image image = examples::image_from_netpbm(c.bytes);
    CHECK(image.height == c.height);
    CHECK(image.width == c.width);
    CHECK(image.channels == c.channels);
    CHECK(image.pixels == c.pixels);
  }
}

TEST_CASE("netpbm images that do not fit are refused") {
  const struct {
    std::string bytes;
    const char* words;
  } cases[] = {
      {"", "not a netpbm"},
      {"P", "not a netpbm"},
      {"P1 1 1 0", "not a netpbm"},
      {"P4 1 1 \x01", "not a netpbm"},
      {"\x89PNG", "not a netpbm"},
      {"P5", "ends before its width"},
      {"P5 #", "ends before its width"},
      {"P5 x 1 255\n", "width is no number"},
      {"P5 -1 1 255\n", "width is no number"},
      {"P5 1x 1 255\n", "width is no number"},
      {"P5 99999999999999999999 1 255\n", "width is above 1048576"},
      {"P5 1 1048577 255\n", "height is above 1048576"},
      {"P5 1 1 65535\n\x01\x01", "8 bits"},
      {"P5 0 1 255\n", "is 0"},
      {"P5 1 0 255\n", "is 0"},
      {std::string("P5 1 1 0\n\0", 10), "is 0"},
      {"P5 2 2 255\n123", "cut off: 2 x 2 x 1"},
      {"P6 1 1 255\n12", "cut off"},
      {"P5 1048576 1048576 255\nabc", "cut off"},
      {"P2 2 1 255\n1", "cut off"},
      {"P2 2 1 255 1  ", "ends before its value"},
      {"P2 2 1 255 1 256", "value is above 255"},
      {"P2 2 1 15 1 16", "value is above 15"},
      {"P2 2 1 255 1 -", "value is no number"},
      {"P5 1 1 255#\n\x01", "not followed by a space"},
  };
  for (const auto& c : cases) {
    INFO(c.bytes);
    try {
      examples::image_from_netpbm(c.bytes);
      FAIL("it was read");
    } catch (const rnp::Error& err) {
      CHECK(err.code() == rnp::ErrorCode::kInput);
      CHECK_THAT(err.what(), Catch::Contains(c.words));
    }
  }
}

TEST_CASE("colours become grey by their luma, and grey becomes colours") {
  const Image colours{1, 4, 3, {255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30}};
  CHECK(examples::with_channels(colours, 1).pixels == Bytes{76, 150, 29, 18});
  const Image grey{1, 2, 1, {5, 9}};
  CHECK(examples::with_channels(grey, 3).pixels == Bytes{5, 5, 5, 9, 9, 9});
  CHECK(examples::with_channels(grey, 1).pixels == grey.pixels);
}

TEST_CASE("resizing weighs by a triangle that widens with the reduction") {
  const Image two{1, 2, 1, {0, 200}};
  CHECK(examples::resized(two, 1, 4).pixels == Bytes{0, 50, 150, 200});
  const Image four{1, 4, 1, {0, 80, 160, 240}};
  CHECK(examples::resized(four, 1, 2).pixels == Bytes{57, 183});  // weights 3 3 1 of 7
  CHECK(examples::resized(four, 2, 4).pixels == Bytes{0, 80, 160, 240, 0, 80, 160, 240});
  const Image column{4, 1, 1, {0, 80, 160, 240}};
  CHECK(examples::resized(column, 2, 1).pixels == Bytes{57, 183});
  const Image colours{1, 2, 3, {0, 100, 255, 200, 100, 255}};
  CHECK(examples::resized(colours, 1, 1).pixels == Bytes{100, 100, 255});
  CHECK(examples::resized(four, 1, 4).pixels == four.pixels);
}

TEST_CASE("resizing to nothing or to too much is refused") {
  const Image image{1, 1, 1, {0}};
  CHECK_THROWS_AS(examples::resized(image, 0, 1), rnp::Error);
  CHECK_THROWS_AS(examples::resized(image, 1, 0), rnp::Error);
  CHECK_THROWS_AS(examples::resized(image, 1 << 20, 1 << 20), rnp::Error);
}

TEST_CASE("a part is cut out, and only from within") {
  const Image image{2, 3, 1, {1, 2, 3, 4, 5, 6}};
  CHECK(examples::cropped(image, 0, 1, 2, 2).pixels == Bytes{2, 3, 5, 6});
  CHECK(examples::cropped(image, 1, 0, 1, 3).pixels == Bytes{4, 5, 6});
  CHECK_THROWS_AS(examples::cropped(image, 1, 0, 2, 3), rnp::Error);
  CHECK_THROWS_AS(examples::cropped(image, 0, 2, 1, 2), rnp::Error);
  CHECK_THROWS_AS(examples::cropped(image, 3, 0, 0, 1), rnp::Error);
}

TEST_CASE("an input has its colours in the order asked for, each with its mean and deviation") {
  const Image image{1, 2, 3, {255, 0, 51, 0, 51, 255}};
  rnp::Preprocessing preprocessing;
  preprocessing.size = {1, 2};
  preprocessing.mean = {0, 0.2, 0};
  preprocessing.std = {1, 1, 0.5};
  preprocessing.colour = "RGB";
  CHECK_THAT(examples::input_from_image(image, preprocessing),
             Catch::Approx(std::vector<float>{1, 0, -0.2F, 0, 0.4F, 2}).margin(1e-6F));
  preprocessing.colour = "BGR";
  CHECK_THAT(examples::input_from_image(image, preprocessing),
             Catch::Approx(std::vector<float>{0.2F, 1, -0.2F, 0, 2, 0}).margin(1e-6F));
}

TEST_CASE("the middle is cut out where proportions are kept") {
  rnp::Preprocessing preprocessing;
  preprocessing.colour = "L";
  preprocessing.size = {2, 2};
  preprocessing.shorter_side = 2;
  preprocessing.mean = {0};
  preprocessing.std = {1.0 / 255};
  // 3 left over: the half, 1.5, goes to 2.
  const Image image{2, 5, 1, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}};
  CHECK_THAT(examples::input_from_image(image, preprocessing),
             Catch::Approx(std::vector<float>{3, 4, 8, 9}).margin(1e-4F));
  const Image narrow{1, 1 << 20, 1, Bytes(1 << 20)};
  preprocessing.shorter_side = 1 << 15;
  preprocessing.size = {1 << 15, 1 << 15};
  CHECK_THROWS_AS(examples::input_from_image(narrow, preprocessing), rnp::Error);
}

TEST_CASE("files that are missing or too large are refused") {
  CHECK_THROWS_WITH(examples::read_file("/nowhere/image.pgm", 10), Catch::Contains("/nowhere/image.pgm"));
  CHECK_THROWS_WITH(examples::read_file("/proc/self/exe", 10), Catch::Contains("at most 10"));
}
