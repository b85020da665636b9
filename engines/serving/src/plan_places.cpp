#include "plan_places.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <string_view>

#include "memory_layout.hpp"
#include "rnp/error.hpp"

namespace rnp {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ErrorCode::kPlan, "the plan cannot be run: " + what + "; build the engine set again");
}

constexpr std::int64_t kMostMacs = std::numeric_limits<std::int64_t>::max() - 1;
constexpr std::int64_t kMostWeightBytes = std::numeric_limits<std::int64_t>::max();

class PlanReading {
 public:
  PlanReading(const Plan& plan, const Manifest& manifest, const EngineCache& engines)
      : plan_(plan), manifest_(manifest), engines_(engines), indices_(tensor_indices(plan)) {}

  std::vector<Place> places() {
    check_ends();
    std::set<std::string> made{manifest_.input.name, kPenalty, state_name(0)};
    std::set<std::string> made_of_given = made;  // where options are given
    std::vector<bool> decided(manifest_.decisions.size(), false);
    std::vector<Place> places;
    std::size_t pieces = 0;
    std::int64_t macs = 0, weight_bytes = 0;
    std::set<std::string_view> files;
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      const Step& step = plan_.steps[i];
      where_ = "step " + std::to_string(i);
      check_reads(step, made);
      if (!step.agent_only) check_reads(step, made_of_given);
      places.push_back(place_of(step, decided));
      places.back().first_piece = pieces;
      pieces += step.pieces.size();
      std::int64_t most = 0;
      for (const Piece& piece : step.pieces) most = std::max(most, piece.macs < 0 ? kMostMacs + 1 : piece.macs);
      if (most > kMostMacs - macs) refuse(where_ + " has more MACs than can be counted");
      macs += most;
      for (const Piece& piece : step.pieces) {
        const std::int64_t more = files.insert(piece.file).second || piece.weight_bytes < 0 ? piece.weight_bytes : 0;
        if (more < 0 || more > kMostWeightBytes - weight_bytes) {
          refuse(where_ + " has more bytes of weights than can be counted");
        }
        weight_bytes += more;
      }
      for (const auto& [inner, name] : step.outputs) {
        made.insert(name);
        if (!step.agent_only) made_of_given.insert(name);
      }
      if (step.decides) decided[places.back().decides] = true;
    }
    if (made_of_given.count(manifest_.output.name) == 0) refuse("no step makes '" + manifest_.output.name + "'");
    return places;
  }

 private:
  const TensorSpec& tensor(const std::string& name) const {
    const auto found = indices_.find(name);
    if (found == indices_.end()) refuse("it has no tensor '" + name + "'");
    return plan_.tensors[found->second];
  }

  // The host writes and reads these by their type and shape.
  void check_ends() const {
    const auto fits = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
      const TensorSpec& found = tensor(name);
      return found.dtype == DType::kFloat32 && !found.follows && found.shape == shape;
    };
    for (const TensorSpec* end : {&manifest_.input, &manifest_.output}) {
      if (!fits(end->name, end->shape)) refuse("tensor '" + end->name + "' is not as in the manifest");
    }
    if (!fits(kPenalty, {})) refuse(std::string("tensor '") + kPenalty + "' is not float32 [N]");
    if (tensor(state_name(0)).follows) refuse("tensor '" + state_name(0) + "' follows a decision");
    for (std::size_t t = 0; t < manifest_.decisions.size(); ++t) {
      const TensorSpec& option = tensor(option_name(t));
      if ((option.dtype != DType::kInt64 && option.dtype != DType::kInt32) || option.follows || !option.shape.empty()) {
        refuse("tensor '" + option.name + "' is not int64 or int32 [N]");
      }
    }
    for (const TensorSpec& spec : plan_.tensors) {
      if (!spec.follows) continue;
      const auto t = static_cast<std::size_t>(*spec.follows);
      if (t >= manifest_.decisions.size() || spec.sizes.size() != manifest_.decisions[t].widths.size() ||
          spec.axis < 1 || static_cast<std::size_t>(spec.axis) > spec.shape.size()) {
        refuse("tensor '" + spec.name + "' does not fit the decision it follows");
      }
    }
  }

  void check_reads(const Step& step, const std::set<std::string>& made) const {
    for (const auto& [inner, name] : step.inputs) {
      if (made.count(name) == 0) refuse(where_ + " reads '" + name + "' before it is made");
    }
  }

  Place place_of(const Step& step, const std::vector<bool>& decided) const {
    Place place;
    place.agent_only = step.agent_only;
    for (const std::int64_t t : step.option_decisions) {
      const auto decision = static_cast<std::size_t>(t);
      if (decision >= decided.size() || !decided[decision]) refuse(where_ + " needs options before they are chosen");
      place.digits.push_back({decision, 0});
    }
    std::size_t table = 1;
    for (std::size_t i = place.digits.size(); i-- > 0;) {
      place.digits[i].stride = table;
      const std::size_t count = manifest_.decisions[place.digits[i].decision].widths.size();
      if (count == 0 || table > step.pieces.size() / count) refuse_pieces();
      table *= count;
    }
    if (table != step.pieces.size()) refuse_pieces();
    place.pieces.resize(table);
    std::vector<bool> filled(table, false);
    for (const Piece& piece : step.pieces) {
      const std::size_t key = key_of(place, piece);
      if (filled[key]) refuse_pieces();
      filled[key] = true;
      place.pieces[key] = {engines_.file_of(piece.file), piece.macs};
    }
    place.inputs = edges(step.inputs, place);
    place.outputs = edges(step.outputs, place);
    if (step.decides) {
      place.decides = static_cast<std::size_t>(*step.decides);
      if (place.decides >= decided.size() || decided[place.decides])
        refuse(where_ + " decides what is none of its own");
      place.option_tensor = indices_.at(option_name(place.decides));
      place.option_bytes = byte_size(plan_.tensors[place.option_tensor].dtype);
      bool made = false;
      for (const Edge& edge : place.outputs) made = made || edge.tensor == place.option_tensor;
      if (!made) refuse(where_ + " decides and gives no option");
    }
    return place;
  }

  std::size_t key_of(const Place& place, const Piece& piece) const {
    if (piece.options.size() != place.digits.size()) refuse_pieces();
    std::size_t key = 0;
    for (std::size_t i = 0; i < piece.options.size(); ++i) {
      if (piece.options[i] < 1 || piece.options[i] > manifest_.option_count(place.digits[i].decision)) refuse_pieces();
      key += static_cast<std::size_t>(piece.options[i] - 1) * place.digits[i].stride;
    }
    return key;
  }

  std::vector<Edge> edges(const Names& names, const Place& place) const {
    std::vector<Edge> found;
    for (const auto& [inner, name] : names) {
      const TensorSpec& spec = tensor(name);
      bool known = !spec.follows;
      for (const Digit& digit : place.digits) {
        known = known || static_cast<std::size_t>(*spec.follows) == digit.decision;
      }
      // Those that take one piece have to be of one width.
      if (!known) refuse(where_ + " has pieces for several sizes of '" + name + "'");
      found.push_back({inner, indices_.at(name)});
    }
    return found;
  }

  [[noreturn]] void refuse_pieces() const { refuse(where_ + " has not one piece for each choice of options"); }

  const Plan& plan_;
  const Manifest& manifest_;
  const EngineCache& engines_;
  const std::map<std::string, std::size_t> indices_;
  std::string where_;
};

}  // namespace

std::vector<std::size_t> Place::decisions() const {
  std::vector<std::size_t> found;
  for (const Digit& digit : digits) found.push_back(digit.decision);
  return found;
}

std::vector<Place> places_of_plan(const Plan& plan, const Manifest& manifest, const EngineCache& engines) {
  return PlanReading(plan, manifest, engines).places();
}

}  // namespace rnp
