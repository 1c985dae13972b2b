#include "server/engine/engine_options.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace ddl {

absl::Status CheckOptions(const EngineOptions& options, int32_t max_sequences) {
  const auto at_least = [](absl::string_view name, int64_t value, int64_t bound) {
    if (value >= bound) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, " must be at least ", bound, ", found ", value));
  };
  absl::Status status;
  status.Update(at_least("max_running_sequences", options.max_running_sequences, 1));
  status.Update(at_least("max_waiting_requests", options.max_waiting_requests, 0));
  status.Update(at_least("max_waiting_tokens", options.max_waiting_tokens, 0));
  status.Update(at_least("max_context_length", options.max_context_length, 2));
  status.Update(at_least("max_step_tokens (so that every running sequence can decode)",
                         options.max_step_tokens,
                         std::min(options.max_running_sequences, max_sequences)));
  if (!(options.max_decode_slowdown >= 1.0)) {
    status.Update(absl::InvalidArgumentError(absl::StrCat(
        "max_decode_slowdown must be at least 1, found ", options.max_decode_slowdown)));
  }
  return status;
}

}  // namespace ddl
