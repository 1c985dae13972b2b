#ifndef DDL_MODEL_HIDDEN_READOUT_H_
#define DDL_MODEL_HIDDEN_READOUT_H_

#include <cstdint>
#include <optional>

namespace ddl {

// Which vector of a position is meant, of its state X [d, dv] after a layer's block.
struct HiddenReadout {
  enum class Kind {
    kFinalNorm,   // [d] the model's readout of X, then ln_f: what the LM head reads
    kCompressed,  // [d] the layer's own compress of X, not normalised
    kChannel,     // [d] one value channel, X[:, channel]
    kStateFlat,   // [d * dv] all of X, value channels fastest
  };
  Kind kind = Kind::kFinalNorm;
  std::optional<int32_t> layer;  // in [0, num_layers); none: the last
  int32_t channel = 0;           // in [0, dv), of kChannel

  // Numbers in the vector, of a model with these sizes.
  int64_t Width(int64_t hidden_size, int64_t value_channels) const {
    return kind == Kind::kStateFlat ? hidden_size * value_channels : hidden_size;
  }
};

}  // namespace ddl

#endif  // DDL_MODEL_HIDDEN_READOUT_H_
