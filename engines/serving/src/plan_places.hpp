// The steps of a plan as the loop needs them: names looked up, pieces in a table by their options.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine_cache.hpp"
#include "rnp/manifest.hpp"

namespace rnp {

struct Edge {
  std::string inner;   // the graph's name
  std::size_t tensor;  // of the plan
};

struct PlacePiece {
  std::size_t file = 0;  // of the engine cache
  std::int64_t macs = 0;
};

struct Place {
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  std::vector<std::size_t> decisions;  // whose options name the piece
  std::vector<std::size_t> strides;    // of each in `pieces`
  std::vector<PlacePiece> pieces;
  std::size_t first_piece = 0;  // of `pieces` among those of all places
  std::vector<Edge> inputs, outputs;
  std::size_t decides = kNone;
  std::size_t option_tensor = kNone;  // where `decides`
  bool agent_only = false;

  // The piece for one sample's options, one per decision, each in range.
  std::size_t key_of(const std::int64_t* options) const noexcept {
    std::size_t key = 0;
    for (std::size_t i = 0; i < decisions.size(); ++i) {
      key += static_cast<std::size_t>(options[decisions[i]] - 1) * strides[i];
    }
    return key;
  }
};

// Throws Error(kPlan): what the loop would read or write beyond its memory with. The readers check more.
std::vector<Place> places_of_plan(const Plan& plan, const Manifest& manifest, const EngineCache& engines);

}  // namespace rnp
