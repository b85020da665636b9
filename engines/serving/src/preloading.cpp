#include "preloading.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>

#include "rnp/error.hpp"

namespace rnp {
namespace {

// A piece that fewer images than this take is not common.
constexpr double kCommonShare = 0.01;

using Shares = std::vector<std::vector<double>>;  // by decision and option

bool fit(const std::vector<std::vector<std::int64_t>>& counts, const Shares& shares) {
  return std::equal(counts.begin(), counts.end(), shares.begin(), shares.end(),
                    [](const auto& row, const auto& options) { return row.size() == options.size(); });
}

Shares option_shares(const Manifest& manifest) {
  Shares shares;
  for (const DecisionManifest& decision : manifest.decisions) {
    shares.emplace_back(decision.widths.size(), 1.0 / static_cast<double>(decision.widths.size()));
  }
  if (!manifest.calibration || manifest.calibration->points.empty()) return shares;
  const auto& points = manifest.calibration->points;
  const double penalty = manifest.agent.penalty;
  const auto nearest = std::min_element(points.begin(), points.end(), [&](const auto& a, const auto& b) {
    return std::abs(a.penalty - penalty) < std::abs(b.penalty - penalty);
  });
  if (!fit(nearest->option_counts, shares)) return shares;
  for (std::size_t t = 0; t < shares.size(); ++t) {
    const std::vector<std::int64_t>& row = nearest->option_counts[t];
    const double all = std::accumulate(row.begin(), row.end(), 0.0);
    for (std::size_t i = 0; i < row.size(); ++i) shares[t][i] = static_cast<double>(row[i]) / std::max(all, 1.0);
  }
  return shares;
}

}  // namespace

std::vector<std::pair<std::string, double>> files_by_use(const Plan& plan, const Manifest& manifest) {
  const Shares shares = option_shares(manifest);
  std::vector<std::pair<std::string, double>> uses;
  std::map<std::string, std::size_t> places;
  for (const Step& step : plan.steps) {
    for (const Piece& piece : step.pieces) {
      double share = 1;
      for (std::size_t i = 0; i < piece.options.size(); ++i) {
        const auto t = static_cast<std::size_t>(step.option_decisions.at(i));
        share *= shares.at(t).at(static_cast<std::size_t>(piece.options[i] - 1));
      }
      const auto [place, added] = places.emplace(piece.file, uses.size());
      if (added) uses.emplace_back(piece.file, 0.0);
      uses[place->second].second = std::max(uses[place->second].second, share);
    }
  }
  std::stable_sort(uses.begin(), uses.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  return uses;
}

std::vector<std::string> common_files(const Plan& plan, const Manifest& manifest) {
  if (!manifest.calibration) {
    throw Error(ErrorCode::kInput,
                "to preload what is common needs a calibration, which this bundle lacks: rnp-train makes one; preload "
                "none or all");
  }
  std::vector<std::string> files;
  for (const auto& [file, share] : files_by_use(plan, manifest)) {
    if (share >= kCommonShare) files.push_back(file);
  }
  return files;
}

}  // namespace rnp
