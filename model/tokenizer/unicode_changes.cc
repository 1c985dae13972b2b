#include "model/tokenizer/unicode_changes.h"

namespace ddl {

absl::Span<const UnicodeChange> UnicodeChanges() {
  static constexpr UnicodeChange kChanges[] = {
#include "model/tokenizer/unicode_changes.inc"
  };
  return kChanges;
}

}  // namespace ddl
