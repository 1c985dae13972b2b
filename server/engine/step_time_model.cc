#include "server/engine/step_time_model.h"

#include <algorithm>
#include <limits>

namespace ddl {
namespace {

constexpr double kKept = 0.98;      // what a step weighs when the next has come
constexpr double kNewShare = 0.1;   // of a mixed step in the smoothed cost of a position
constexpr double kMinSpread = 0.5;  // of decodes (variance), before a slope is more than noise

}  // namespace

void StepTimeModel::Record(int32_t decodes, int32_t prefill_tokens, absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  if (decodes == 0 || seconds <= 0.0) return;
  if (prefill_tokens == 0) {
    const double n = decodes;
    for (double* sum : {&sums_.weight, &sums_.decodes, &sums_.seconds, &sums_.decodes_squared,
                        &sums_.decodes_seconds}) {
      *sum *= kKept;
    }
    sums_.weight += 1.0;
    sums_.decodes += n;
    sums_.seconds += seconds;
    sums_.decodes_squared += n * n;
    sums_.decodes_seconds += n * seconds;
  } else if (const std::optional<double> alone = DecodeSeconds(decodes)) {
    const double each = std::max(0.0, seconds - *alone) / prefill_tokens;
    prefill_seconds_ = prefill_seconds_.has_value()
                           ? *prefill_seconds_ + kNewShare * (each - *prefill_seconds_)
                           : each;
  }
}

std::optional<double> StepTimeModel::DecodeSeconds(int32_t decodes) const {
  if (sums_.weight == 0.0) return std::nullopt;
  const double mean_decodes = sums_.decodes / sums_.weight;
  const double mean_seconds = sums_.seconds / sums_.weight;
  const double variance = sums_.decodes_squared / sums_.weight - mean_decodes * mean_decodes;
  const double covariance = sums_.decodes_seconds / sums_.weight - mean_decodes * mean_seconds;
  // More decodes never take less time, and none of it comes from nothing.
  const double slope = variance < kMinSpread
                           ? 0.0
                           : std::clamp(covariance / variance, 0.0, mean_seconds / mean_decodes);
  return mean_seconds + slope * (decodes - mean_decodes);
}

std::optional<int32_t> StepTimeModel::PrefillBudget(int32_t decodes, double max_slowdown) const {
  const std::optional<double> alone = DecodeSeconds(decodes);
  if (!alone.has_value() || !prefill_seconds_.has_value()) return std::nullopt;
  const double budget = (max_slowdown - 1.0) * *alone / std::max(*prefill_seconds_, 1e-12);
  return static_cast<int32_t>(std::clamp(budget, 1.0, 1e9));
}

}  // namespace ddl
