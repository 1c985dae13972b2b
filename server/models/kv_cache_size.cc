#include "server/models/kv_cache_size.h"

#include <algorithm>

namespace ddl {

int64_t AutomaticKvCacheBytes(int64_t bytes_per_token, int64_t sequences, int64_t context,
                              std::optional<int64_t> available, int64_t models) {
  const int64_t wanted = bytes_per_token * sequences * context;
  return available.has_value() ? std::min(wanted, *available / 4 / models) : wanted;
}

}  // namespace ddl
