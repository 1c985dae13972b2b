#include "bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace ddl::bench {

double Percentile(absl::Span<const double> sorted, double fraction) {
  DDL_CHECK(!sorted.empty(), "a percentile needs a sample");
  DDL_CHECK(fraction >= 0.0 && fraction <= 1.0, "a fraction is in [0, 1]");
  const double rank = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(std::floor(rank));
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double weight = rank - static_cast<double>(below);
  return sorted[below] + weight * (sorted[above] - sorted[below]);
}

Summary Summarize(std::vector<double> samples) {
  Summary summary;
  if (samples.empty()) return summary;
  std::sort(samples.begin(), samples.end());
  summary.count = static_cast<int64_t>(samples.size());
  summary.mean =
      std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size());
  summary.min = samples.front();
  summary.median = Percentile(samples, 0.5);
  summary.p90 = Percentile(samples, 0.9);
  summary.p99 = Percentile(samples, 0.99);
  summary.max = samples.back();
  return summary;
}

std::vector<double> RatiosByRound(absl::Span<const double> numerators,
                                  absl::Span<const double> denominators) {
  DDL_CHECK(numerators.size() == denominators.size(), "both were measured in every round");
  std::vector<double> ratios;
  ratios.reserve(numerators.size());
  for (size_t i = 0; i < numerators.size(); ++i) ratios.push_back(numerators[i] / denominators[i]);
  return ratios;
}

}  // namespace ddl::bench
