#ifndef DDL_SERVER_ENGINE_GATE_STATISTICS_H_
#define DDL_SERVER_ENGINE_GATE_STATISTICS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "model/model_runner.h"
#include "server/engine/observer.h"

namespace ddl {

// Has a few positions of a step report their gates, once per interval, and passes them on. The
// step thread alone.
class GateStatistics {
 public:
  // An infinite interval: never. `num_sublayers`: two for each layer of the model.
  GateStatistics(absl::Duration interval, int64_t num_sublayers)
      : interval_(interval), num_sublayers_(static_cast<size_t>(num_sublayers)) {}

  // Asks some of the chunks for ddl_stats, when it is time. Which ones.
  std::vector<size_t> Ask(absl::Time now, absl::Span<SequenceChunk> chunks);
  // What came of a step whose Ask gave `asked`.
  void Report(absl::Span<const size_t> asked, absl::Span<const ChunkOutput> outputs,
              EngineObserver* observer) const;

 private:
  const absl::Duration interval_;
  const size_t num_sublayers_;
  absl::Time next_ = absl::InfinitePast();
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_GATE_STATISTICS_H_
