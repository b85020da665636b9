#include "plan_places.hpp"

#include <catch2/catch.hpp>
#include <functional>
#include <limits>

#include "errors.hpp"
#include "small_network.hpp"

using namespace rnp;
using namespace rnp::testing;

namespace {

std::vector<Place> places_of(const FakeNetwork& network) {
  FakeBackend backend(network);
  const EngineCache engines(network.plan, backend, 0);
  return places_of_plan(network.plan, network.manifest, engines);
}

Thrown thrown(const std::function<void(FakeNetwork&)>& change) {
  FakeNetwork network = small_network();
  change(network);
  return error_of([&] { places_of(network); });
}

TensorSpec& tensor(FakeNetwork& network, const std::string& name) {
  for (TensorSpec& spec : network.plan.tensors) {
    if (spec.name == name) return spec;
  }
  throw std::logic_error(name);
}

}  // namespace

TEST_CASE("Pieces lie in a table by their options, whatever their order") {
  FakeNetwork network = small_network();
  std::swap(network.plan.steps[4].pieces[0], network.plan.steps[4].pieces[5]);
  FakeBackend backend(network);
  const EngineCache engines(network.plan, backend, 0);
  const auto places = places_of_plan(network.plan, network.manifest, engines);
  REQUIRE(places.size() == 5);
  CHECK(places[4].decisions() == std::vector<std::size_t>{0, 1});
  for (std::int64_t a = 1; a <= 3; ++a) {
    for (std::int64_t b = 1; b <= 2; ++b) {
      const std::int64_t options[] = {a, b};
      const PlacePiece& piece = places[4].pieces[places[4].key_of(options)];
      CHECK(engines.path_of(piece.file) == "last/" + std::to_string(a) + "-" + std::to_string(b));
      CHECK(piece.macs == a * b);
    }
  }
  CHECK(places[0].first_piece == 0);
  CHECK(places[4].first_piece == 6);
  CHECK(places[1].decides == 0);
  CHECK(places[1].option_bytes == 8);
  CHECK(places[3].option_bytes == 4);
  CHECK(places[3].agent_only);
  CHECK(places[2].decides == Place::kNone);
}

TEST_CASE("A plan that would be run beyond its memory is refused") {
  CHECK(thrown([](FakeNetwork&) {}) == "nothing: thrown");
  const auto steps = [](FakeNetwork& n) -> std::vector<Step>& { return n.plan.steps; };
  // Ends
  CHECK(thrown([](FakeNetwork& n) {
          n.manifest.input.shape = {1, 2, 3};
        }) == "plan: 'images' is not as in the manifest");
  CHECK(thrown([](FakeNetwork& n) { tensor(n, "outputs").dtype = DType::kFloat16; }) == "plan: 'outputs' is not as");
  CHECK(thrown([](FakeNetwork& n) { tensor(n, "outputs").name = "other"; }) == "plan: no tensor");
  CHECK(thrown([](FakeNetwork& n) { tensor(n, kPenalty).shape = {1}; }) == "plan: not float32 [N]");
  CHECK(thrown([](FakeNetwork& n) { tensor(n, option_name(1)).dtype = DType::kFloat32; }) ==
        "plan: not int64 or int32");
  CHECK(thrown([](FakeNetwork& n) { tensor(n, option_name(0)).shape = {2}; }) == "plan: not int64 or int32");
  CHECK(thrown([](FakeNetwork& n) { tensor(n, state_name(0)).follows = 0; }) == "plan: follows a decision");
  // What follows decisions
  CHECK(thrown([](FakeNetwork& n) { tensor(n, "x").follows = 2; }) == "plan: does not fit the decision");
  CHECK(thrown([](FakeNetwork& n) { tensor(n, "x").follows = -1; }) == "plan: does not fit the decision");
  CHECK(thrown([](FakeNetwork& n) { tensor(n, "x").axis = 0; }) == "plan: does not fit the decision");
  CHECK(thrown([](FakeNetwork& n) { tensor(n, "x").axis = 3; }) == "plan: does not fit the decision");
  CHECK(thrown([](FakeNetwork& n) { tensor(n, "x").sizes = {1, 2}; }) == "plan: does not fit the decision");
  CHECK(thrown([](FakeNetwork& n) {
          tensor(n, "x").follows = 1, tensor(n, "x").sizes = {3, 6};
        }) == "plan: step 2 has pieces for several sizes of 'x'");
  // Order
  CHECK(thrown([&](FakeNetwork& n) { std::swap(steps(n)[0], steps(n)[1]); }) == "plan: step 0 reads 'f0' before");
  CHECK(thrown([&](FakeNetwork& n) { steps(n)[1].decides.reset(); }) == "plan: step 2 needs options before");
  CHECK(thrown([&](FakeNetwork& n) { steps(n)[2].option_decisions = {7}; }) == "plan: step 2 needs options before");
  CHECK(thrown([&](FakeNetwork& n) { steps(n)[2].option_decisions = {-1}; }) == "plan: step 2 needs options before");
  CHECK(thrown([&](FakeNetwork& n) { steps(n)[2].inputs["state"] = state_name(1); }) ==
        "plan: step 2 reads 'agent/state.1'");
  CHECK(thrown([&](FakeNetwork& n) { steps(n).pop_back(); }) == "plan: no step makes 'outputs'");
  CHECK(thrown([&](FakeNetwork& n) { steps(n)[4].agent_only = true; }) == "plan: no step makes 'outputs'");
  // Decisions
  CHECK(thrown([&](FakeNetwork& n) { steps(n)[3].decides = 0; }) == "plan: step 3 decides what is none of its own");
  CHECK(thrown([&](FakeNetwork& n) { steps(n)[3].decides = 2; }) == "plan: step 3 decides what is none of its own");
  CHECK(thrown([&](FakeNetwork& n) { steps(n)[3].decides = -1; }) == "plan: step 3 decides what is none of its own");
  CHECK(thrown([&](FakeNetwork& n) { steps(n)[3].outputs.erase("option"); }) ==
        "plan: step 3 decides and gives no option");
  // Pieces
  const auto pieces = [&](FakeNetwork& n) -> std::vector<Piece>& { return steps(n)[4].pieces; };
  CHECK(thrown([&](FakeNetwork& n) { pieces(n).pop_back(); }) == "plan: step 4 has not one piece");
  CHECK(thrown([&](FakeNetwork& n) { pieces(n).push_back(pieces(n)[0]); }) == "plan: step 4 has not one piece");
  CHECK(thrown([&](FakeNetwork& n) { pieces(n)[0].options = {1, 2}; }) == "plan: step 4 has not one piece");
  CHECK(thrown([&](FakeNetwork& n) { pieces(n)[0].options = {1, 0}; }) == "plan: step 4 has not one piece");
  CHECK(thrown([&](FakeNetwork& n) { pieces(n)[0].options = {4, 1}; }) == "plan: step 4 has not one piece");
  CHECK(thrown([&](FakeNetwork& n) { pieces(n)[0].options = {1}; }) == "plan: step 4 has not one piece");
  CHECK(thrown([&](FakeNetwork& n) { n.manifest.decisions[1].widths.clear(); }) == "plan: step 4 has not one piece");
  CHECK(thrown([&](FakeNetwork& n) { pieces(n)[0].macs = std::numeric_limits<std::int64_t>::max(); }) ==
        "plan: step 4 has more MACs");
  CHECK(thrown([&](FakeNetwork& n) { pieces(n)[0].macs = -1; }) == "plan: step 4 has more MACs");
  CHECK(thrown([&](FakeNetwork& n) {
          for (Piece& piece : pieces(n)) piece.weight_bytes = std::numeric_limits<std::int64_t>::max() / 2 + 1;
        }) == "plan: step 4 has more bytes of weights");
  CHECK(thrown([&](FakeNetwork& n) { pieces(n)[0].weight_bytes = -1; }) == "plan: step 4 has more bytes of weights");
}
