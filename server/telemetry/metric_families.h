#ifndef DDL_SERVER_TELEMETRY_METRIC_FAMILIES_H_
#define DDL_SERVER_TELEMETRY_METRIC_FAMILIES_H_

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"
#include "base/check.h"

// What the metrics are made with.

namespace ddl {

using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets& ShortSeconds();       // for what takes a step or a few
const Buckets& LongSeconds();        // for whole requests
Buckets TokenBuckets(int64_t most);  // 1, 2, 5, 10 ... up to `most` tokens
Buckets BatchBuckets();              // powers of two to 1024
const Buckets& GateBuckets();  // of beta: closest about identity 0, projection 1, reflection 2
const Buckets& UpdateRatioBuckets();  // of |update| / |X|

// The family `name`, made when it is first asked for.
prometheus::Family<prometheus::Counter>& CounterFamily(prometheus::Registry& registry,
                                                       const char* name, const char* help);
prometheus::Family<prometheus::Gauge>& GaugeFamily(prometheus::Registry& registry, const char* name,
                                                   const char* help);
prometheus::Family<prometheus::Histogram>& HistogramFamily(prometheus::Registry& registry,
                                                           const char* name, const char* help);

inline double Seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

// One series for each value of an enum that can happen here.
template <typename Metric, typename Key>
class SeriesBy {
 public:
  void Add(Key key, Metric& metric) { metrics_[static_cast<size_t>(key)] = &metric; }
  Metric& operator[](Key key) const {
    Metric* const metric = metrics_[static_cast<size_t>(key)];
    DDL_CHECK(metric != nullptr, "a label that the metrics do not have");
    return *metric;
  }

 private:
  std::array<Metric*, 16> metrics_ = {};
};

}  // namespace ddl

#endif  // DDL_SERVER_TELEMETRY_METRIC_FAMILIES_H_
