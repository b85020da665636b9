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

// A decision whose option names the piece, and how far its options lie apart in the table.
struct Digit {
  std::size_t decision, stride;
};

struct Place {
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  // What every run reads comes first: it is out of the processor's caches each time.
  std::vector<Digit> digits;
  std::size_t first_piece = 0;  // of `pieces` among those of all places
  std::size_t decides = kNone;
  std::size_t option_tensor = kNone;  // where `decides`
  std::size_t option_bytes = 0;       // of one of its values: 4 or 8
  bool agent_only = false;
  std::vector<PlacePiece> pieces;
  std::vector<Edge> inputs, outputs;

  // The piece for one sample's options, one per decision, each in range.
  std::size_t key_of(const std::int64_t* options) const noexcept {
    std::size_t key = 0;
    for (const Digit& digit : digits) key += static_cast<std::size_t>(options[digit.decision] - 1) * digit.stride;
    return key;
  }
  std::vector<std::size_t> decisions() const;
};

// Throws Error(kPlan): what the loop would read or write beyond its memory with. The readers check more.
std::vector<Place> places_of_plan(const Plan& plan, const Manifest& manifest, const EngineCache& engines);

}  // namespace rnp
