#ifndef DDL_MODEL_TOKENIZER_UNICODE_FORM_H_
#define DDL_MODEL_TOKENIZER_UNICODE_FORM_H_

#include <string_view>
#include <vector>

#include "model/tokenizer/aligned_text.h"

namespace ddl {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

// The normalization form of `text`, as changes to its characters. The data are ICU's, restricted to
// characters of Unicode 9: the library that Hugging Face's tokenizers use knows no later ones. The
// changes are that library's too: of characters that become one, the first gives the place.
std::vector<ChangedCharacter> ToUnicodeForm(UnicodeForm form, std::string_view text);

// Lower case, each character by itself, whatever is around it.
std::vector<ChangedCharacter> ToLowerCase(std::string_view text);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_UNICODE_FORM_H_
