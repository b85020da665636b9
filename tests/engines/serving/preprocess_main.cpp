// For a test beside Pillow: the input made of an image, as float32 on stdout.
//     rnp_preprocess IMAGE COLOUR HEIGHT WIDTH SHORTER_SIDE(0: none)
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>

#include "preprocessing.hpp"

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  try {
    rnp::Preprocessing preprocessing;
    preprocessing.colour = argv[2];
    preprocessing.size = {std::stoll(argv[3]), std::stoll(argv[4])};
    if (std::stoll(argv[5]) > 0) preprocessing.shorter_side = std::stoll(argv[5]);
    preprocessing.mean = {0.25, 0.5, 0.125};
    preprocessing.std = {0.5, 0.3, 0.7};
    const examples::Image image = examples::image_from_netpbm(examples::read_file(argv[1], 1 << 26));
    const std::vector<float> input = examples::input_from_image(image, preprocessing);
    return std::fwrite(input.data(), sizeof(float), input.size(), stdout) == input.size() ? 0 : 1;
  } catch (const std::exception& err) {
    std::cerr << err.what() << "\n";
    return 1;
  }
}
