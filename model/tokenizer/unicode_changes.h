#ifndef DDL_MODEL_TOKENIZER_UNICODE_CHANGES_H_
#define DDL_MODEL_TOKENIZER_UNICODE_CHANGES_H_

#include <string_view>

#include "absl/types/span.h"

namespace ddl {

// Code points [first, last] whose general category differs between Unicode 14, which PCRE2 knows,
// and Unicode 16, which Hugging Face's tokenizers know. In order. "Cn": unassigned.
struct UnicodeChange {
  char32_t first = 0;
  char32_t last = 0;
  std::string_view category_in_14;
  std::string_view category_in_16;
};

absl::Span<const UnicodeChange> UnicodeChanges();

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_UNICODE_CHANGES_H_
