#ifndef DDL_SERVER_ENGINE_POOLING_H_
#define DDL_SERVER_ENGINE_POOLING_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/model_runner.h"
#include "server/engine/request.h"

namespace ddl {

// How the vectors of an input's positions become its embedding.
struct PoolingParams {
  Pooling pooling = Pooling::kLastToken;
  bool normalize = true;   // L2, after pooling and cutting; a zero vector stays zero
  int32_t dimensions = 0;  // keep the first k numbers of each vector; 0: all
};

// Pools one input while it is computed chunk by chunk. Positions are taken one after the other
// and sums are float64, so that the result is the same to the bit however the input was cut.
class Pooler {
 public:
  // `hidden_size`: numbers in a position's vector.
  Pooler(const PoolingParams& params, int64_t hidden_size);

  // Which of a chunk's positions it needs.
  Rows RowsNeeded(bool last_chunk) const;
  // The rows asked for, [rows, hidden_size], in the order of positions.
  void Add(absl::Span<const float> rows);
  // Back to before the first position, for an input that is computed again.
  void Reset();
  // One vector; one per position with Pooling::kNone. Call once, after the last position.
  std::vector<std::vector<float>> Take();

 private:
  PoolingParams params_;
  int64_t hidden_size_;
  int64_t num_rows_ = 0;
  std::vector<double> pooled_;               // [hidden_size]: last, sum or maximum
  std::vector<std::vector<float>> vectors_;  // of Pooling::kNone
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_POOLING_H_
