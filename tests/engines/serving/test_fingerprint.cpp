#include "fingerprint.hpp"

#include <catch2/catch.hpp>

using namespace rnp;

TEST_CASE("the fingerprint of a processor, from /proc/cpuinfo") {
  const auto amd = fingerprint_of("1.32.0", "x86_64",
                                  "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t:  AMD EPYC: 7 \n"
                                  "flags\t\t: fpu avx2 avx sse4_1 avx512_vnni xavx512f\n\n"
                                  "processor\t: 1\nmodel name\t: other\nflags\t\t: sve\n");
  CHECK(amd.at("onnxruntime") == "1.32.0");
  CHECK(amd.at("machine") == "x86_64");
  CHECK(amd.at("processor") == "AMD EPYC: 7");
  CHECK(amd.at("features") == "sse4_1 avx avx2 avx512_vnni");
  const auto arm = fingerprint_of("1.32.0", "aarch64", "Features : fp asimd bf16 sve");
  CHECK(arm.at("processor") == "unknown");
  CHECK(arm.at("features") == "asimd bf16 sve");
  const auto none = fingerprint_of("", "", "flags\n: x\nmodel name\nmodel name : late");
  CHECK(none.at("processor") == "unknown");
  CHECK(none.at("features") == "");
  CHECK(fingerprint_of("", "", "flags : avx\nFeatures : asimd").at("features") == "avx asimd");
}

TEST_CASE("this machine has a name") {
  CHECK_FALSE(machine_name().empty());
  CHECK_FALSE(system_name().empty());
  CHECK(fingerprint().size() == 4);
}
