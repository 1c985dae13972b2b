#include "server/models/kv_cache_size.h"

#include <gtest/gtest.h>

#include <optional>

namespace ddl {
namespace {

TEST(AutomaticKvCacheBytesTest, IsAtMostAQuarterOfWhatIsAvailable) {
  EXPECT_EQ(AutomaticKvCacheBytes(100, 64, 1000, std::nullopt, 1), 6400000);
  EXPECT_EQ(AutomaticKvCacheBytes(100, 64, 1000, 4 * 6400000, 1), 6400000);
  EXPECT_EQ(AutomaticKvCacheBytes(100, 64, 1000, 4 * 6400000 - 4, 1), 6399999);
  // Several models share the quarter.
  EXPECT_EQ(AutomaticKvCacheBytes(100, 64, 1000, 4 * 6400000, 2), 3200000);
  EXPECT_EQ(AutomaticKvCacheBytes(100, 64, 1000, 8 * 6400000, 2), 6400000);
  EXPECT_EQ(AutomaticKvCacheBytes(100, 64, 1000, std::nullopt, 3), 6400000);
  EXPECT_EQ(AutomaticKvCacheBytes(100, 64, 1000, 0, 1), 0);  // there is none
}

}  // namespace
}  // namespace ddl
