// Any bytes as config.json, read as each revision's code reads it for each variant: refused in a
// readable message, or a configuration whose numbers a model can have.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/checkpoint/checkpoint_layout.h"
#include "model/checkpoint/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  for (const ddl::Revision revision :
       {ddl::Revision::kLegacy, ddl::Revision::k2b55f25, ddl::Revision::kD1f7621}) {
    for (const ddl::Variant variant :
         {ddl::Variant::kGpt, ddl::Variant::kVdim1, ddl::Variant::kTc, ddl::Variant::kTcec,
          ddl::Variant::kCc, ddl::Variant::kCcec}) {
      const auto config = ddl::ModelConfig::Parse(json, "config.json", variant, revision);
      if (!config.ok()) {
        for (const char c : config.status().message()) {
          if (c != '\n' && static_cast<unsigned char>(c) < 0x20) std::abort();
        }
        continue;
      }
      if (!(ddl::LogitScale(*config) > 0.0) || !std::isfinite(ddl::LogitScale(*config)))
        std::abort();
      if (!(ddl::ResidualMultiplier(*config) > 0.0)) std::abort();
      if (ddl::MlpWidth(*config, variant) < 1) std::abort();
      const ddl::CheckpointLayout layout = {variant, revision};
      // A table of every layer is as long as the model is deep.
      if (config->num_hidden_layers <= 4 && ddl::CheckSizes(*config, layout).ok()) {
        for (const auto& [name, shape] : ddl::ExpectedShapes(*config, layout)) {
          for (const int64_t axis : shape) {
            if (axis < 1) std::abort();
          }
          if (ddl::OwnShape(name, shape, layout).empty()) std::abort();
        }
      }
    }
  }
  return 0;
}
