#include "bench/token_lengths.h"

#include <algorithm>
#include <fstream>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace ddl::bench {
namespace {

bool ParseLength(absl::string_view text, int32_t* length) {
  return absl::SimpleAtoi(text, length) && *length >= 1;
}

}  // namespace

absl::StatusOr<TokenLengths> TokenLengths::Parse(const std::string& text) {
  TokenLengths lengths;
  if (!text.empty() && text[0] == '@') {
    const std::string path = text.substr(1);
    std::ifstream file(path);
    int number = 0;
    for (std::string raw; std::getline(file, raw);) {
      ++number;
      const absl::string_view line = absl::StripAsciiWhitespace(raw);
      if (line.empty() || line[0] == '#') continue;
      int32_t length;
      if (!ParseLength(line, &length)) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ":", number, ": '", line, "' is no number of tokens, at least 1"));
      }
      lengths.lengths_.push_back(length);
    }
    if (!file.is_open() || file.bad()) {
      return absl::InvalidArgumentError(absl::StrCat("cannot read '", path, "'"));
    }
    if (lengths.lengths_.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("'", path, "' holds no length"));
    }
    const auto [shortest, longest] =
        std::minmax_element(lengths.lengths_.begin(), lengths.lengths_.end());
    lengths.shortest_ = *shortest;
    lengths.longest_ = *longest;
    return lengths;
  }
  const size_t dots = text.find("..");
  const std::string first = text.substr(0, dots);
  const std::string last = dots == std::string::npos ? first : text.substr(dots + 2);
  if (!ParseLength(first, &lengths.shortest_) || !ParseLength(last, &lengths.longest_) ||
      lengths.shortest_ > lengths.longest_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "must be a number of tokens, a range A..B or @FILE with one number a line, not '", text,
        "'"));
  }
  return lengths;
}

int32_t TokenLengths::Sample(std::mt19937_64& random) const {
  if (!lengths_.empty()) {
    return lengths_[std::uniform_int_distribution<size_t>(0, lengths_.size() - 1)(random)];
  }
  return std::uniform_int_distribution<int32_t>(shortest_, longest_)(random);
}

}  // namespace ddl::bench
