#ifndef DDL_BENCH_TOKEN_LENGTHS_H_
#define DDL_BENCH_TOKEN_LENGTHS_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ddl::bench {

// How long prompts or completions are, in tokens. A plain value.
class TokenLengths {
 public:
  // "128" (always), "64..256" (uniform, both ends included), "@FILE" (sampled from a file with one
  // length a line; empty lines and lines with '#' in front are left out). INVALID_ARGUMENT for
  // anything else, and for a length below 1.
  static absl::StatusOr<TokenLengths> Parse(const std::string& text);

  int32_t Sample(std::mt19937_64& random) const;
  int32_t longest() const { return longest_; }

 private:
  TokenLengths() = default;

  int32_t shortest_ = 1;
  int32_t longest_ = 1;
  std::vector<int32_t> lengths_;  // of a file; empty: uniform between the two
};

}  // namespace ddl::bench

#endif  // DDL_BENCH_TOKEN_LENGTHS_H_
