#ifndef DDL_SERVER_ENGINE_STEP_TIME_MODEL_H_
#define DDL_SERVER_ENGINE_STEP_TIME_MODEL_H_

#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace ddl {

// How long a step lasts, learnt from the steps of the recent past: decodes alone take a + b *
// decodes, and every position of a prompt or input beside them takes so much more. Not
// thread-safe.
class StepTimeModel {
 public:
  void Record(int32_t decodes, int32_t prefill_tokens, absl::Duration duration);

  // How many positions of prompts and inputs a step may compute beside `decodes`, at least 1, so
  // that it lasts at most `max_slowdown` times as long as the decodes alone. None while too little
  // is measured.
  std::optional<int32_t> PrefillBudget(int32_t decodes, double max_slowdown) const;

 private:
  std::optional<double> DecodeSeconds(int32_t decodes) const;

  // Sums over steps of decodes alone, each weighted by how recent it is: for the line of least
  // squares through (decodes, seconds).
  struct Sums {
    double weight = 0.0;
    double decodes = 0.0;
    double seconds = 0.0;
    double decodes_squared = 0.0;
    double decodes_seconds = 0.0;
  };
  Sums sums_;
  std::optional<double> prefill_seconds_;  // of one position
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_STEP_TIME_MODEL_H_
