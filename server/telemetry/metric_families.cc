#include "server/telemetry/metric_families.h"

namespace ddl {

const Buckets& ShortSeconds() {
  static const auto* const buckets =
      new Buckets{.0001, .00025, .0005, .001, .002, .003, .005, .0075, .01, .015,
                  .02,   .03,    .05,   .075, .1,   .15,  .25,  .5,    1,   2.5};
  return *buckets;
}

const Buckets& LongSeconds() {
  static const auto* const buckets =
      new Buckets{.001, .0025, .005, .01, .02, .04, .06, .08, .1, .15, .25, .5,
                  .75,  1,     2.5,  5,   7.5, 10,  20,  30,  60, 120, 300};
  return *buckets;
}

Buckets TokenBuckets(int64_t most) {
  Buckets buckets;
  for (int64_t decade = 1; decade < most; decade *= 10) {
    for (const int64_t step : {1, 2, 5}) {
      if (decade * step < most) buckets.push_back(static_cast<double>(decade * step));
    }
  }
  buckets.push_back(static_cast<double>(most));
  return buckets;
}

Buckets BatchBuckets() {
  Buckets buckets;
  for (int size = 1; size <= 1024; size *= 2) buckets.push_back(size);
  return buckets;
}

// What beta of the delta rule can be, closest about identity 0, projection 1 and reflection 2.
const Buckets& GateBuckets() {
  static const auto* const buckets =
      new Buckets{.01, .05, .1, .25, .5, .75, .9, 1, 1.1, 1.25, 1.5, 1.75, 1.9, 1.95, 1.99, 2};
  return *buckets;
}

// |update| / |X|: at most 2 for a pure rewrite, more where v is large.
const Buckets& UpdateRatioBuckets() {
  static const auto* const buckets =
      new Buckets{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5, 10};
  return *buckets;
}

prometheus::Family<prometheus::Counter>& CounterFamily(prometheus::Registry& registry,
                                                       const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}
prometheus::Family<prometheus::Gauge>& GaugeFamily(prometheus::Registry& registry, const char* name,
                                                   const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}
prometheus::Family<prometheus::Histogram>& HistogramFamily(prometheus::Registry& registry,
                                                           const char* name, const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

}  // namespace ddl
