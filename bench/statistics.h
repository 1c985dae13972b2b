#ifndef DDL_BENCH_STATISTICS_H_
#define DDL_BENCH_STATISTICS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace ddl::bench {

// What is reported of a set of samples, in the samples' unit. Exact: computed from every sample,
// not from buckets.
struct Summary {
  int64_t count = 0;  // 0: the rest means nothing
  double mean = 0.0;
  double min = 0.0;
  double median = 0.0;
  double p90 = 0.0;
  double p99 = 0.0;
  double max = 0.0;
};

// The value below which `fraction`, in [0, 1], of the samples lie: linear between the two nearest
// ranks, as numpy.percentile does. `sorted` is ascending and not empty.
double Percentile(absl::Span<const double> sorted, double fraction);

Summary Summarize(std::vector<double> samples);

// numerators[i] / denominators[i]: one ratio of each round of an interleaved measurement. The
// spans are equally long, the denominators not 0.
std::vector<double> RatiosByRound(absl::Span<const double> numerators,
                                  absl::Span<const double> denominators);

}  // namespace ddl::bench

#endif  // DDL_BENCH_STATISTICS_H_
