#ifndef DDL_SERVER_MODELS_KV_CACHE_SIZE_H_
#define DDL_SERVER_MODELS_KV_CACHE_SIZE_H_

#include <cstdint>
#include <optional>

namespace ddl {

// How large a K/V cache to make for one of `models` models when nobody says: room for `sequences`
// of `context` tokens, but at most its share of a quarter of `available` bytes (nullopt: unknown).
int64_t AutomaticKvCacheBytes(int64_t bytes_per_token, int64_t sequences, int64_t context,
                              std::optional<int64_t> available, int64_t models);

}  // namespace ddl

#endif  // DDL_SERVER_MODELS_KV_CACHE_SIZE_H_
