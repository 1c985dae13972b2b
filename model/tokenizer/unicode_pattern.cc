#include "model/tokenizer/unicode_pattern.h"

#include <cstdint>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace ddl {
namespace {

// PCRE2 10.42 knows Unicode 14, the tokenizers that GPT-2 texts are compared with know Unicode 16.
// These are the code points that became letters, decimal digits, other numbers and marks in
// between; none ceased to be one. From the differences of UnicodeData.txt. The tokenizer's parity
// test walks all code points, so it tells when the other tokenizers move on.
constexpr char kNewLetters[] =
    R"(\x{1C89}\x{1C8A}\x{A7CB}-\x{A7CD}\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3}\x{10D4A}-\x{10D65})"
    R"(\x{10D6F}-\x{10D85}\x{10EC2}-\x{10EC4}\x{1123F}\x{11240}\x{11380}-\x{11389}\x{1138B})"
    R"(\x{1138E}\x{11390}-\x{113B5}\x{113B7}\x{113D1}\x{113D3}\x{11BC0}-\x{11BE0}\x{11F02})"
    R"(\x{11F04}-\x{11F10}\x{11F12}-\x{11F33}\x{1342F}\x{13441}-\x{13446}\x{13460}-\x{143FA})"
    R"(\x{16100}-\x{1611D}\x{16D40}-\x{16D6C}\x{18CFF}\x{1B132}\x{1B155}\x{1DF25}-\x{1DF2A})"
    R"(\x{1E030}-\x{1E06D}\x{1E4D0}-\x{1E4EB}\x{1E5D0}-\x{1E5ED}\x{1E5F0}\x{2B739})"
    R"(\x{2EBF0}-\x{2EE5D}\x{31350}-\x{323AF})";
constexpr char kNewDigits[] =
    R"(\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}\x{11F50}-\x{11F59})"
    R"(\x{16130}-\x{16139}\x{16D70}-\x{16D79}\x{1CCF0}-\x{1CCF9}\x{1E4F0}-\x{1E4F9})"
    R"(\x{1E5F1}-\x{1E5FA})";
constexpr char kNewNumbers[] = R"(\x{1D2C0}-\x{1D2D3})";
constexpr char kNewMarks[] =
    R"(\x{0897}\x{0CF3}\x{0ECE}\x{10D69}-\x{10D6D}\x{10EFC}-\x{10EFF}\x{11241})"
    R"(\x{113B8}-\x{113C0}\x{113C2}\x{113C5}\x{113C7}-\x{113CA}\x{113CC}-\x{113D0}\x{113D2})"
    R"(\x{113E1}\x{113E2}\x{11F00}\x{11F01}\x{11F03}\x{11F34}-\x{11F3A}\x{11F3E}-\x{11F42})"
    R"(\x{11F5A}\x{13440}\x{13447}-\x{13455}\x{1611E}-\x{1612F}\x{1E08F}\x{1E4EC}-\x{1E4EF})"
    R"(\x{1E5EE}\x{1E5EF})";

// The property White_Space. PCRE2's own \s also has U+180E, which lost it in Unicode 6.3.
constexpr char kWhiteSpace[] =
    R"(\x{09}-\x{0D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F})"
    R"(\x{3000})";

}  // namespace

void UnicodePattern::CodeDeleter::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

void UnicodePattern::ContextDeleter::operator()(pcre2_real_match_context_8* context) const {
  pcre2_match_context_free(context);
}

void PatternMatcher::DataDeleter::operator()(pcre2_real_match_data_8* data) const {
  pcre2_match_data_free(data);
}

absl::StatusOr<UnicodePattern> UnicodePattern::Gpt2Word() {
  const std::string letter = absl::StrCat(R"(\p{L})", kNewLetters);
  const std::string number = absl::StrCat(R"(\p{N})", kNewDigits, kNewNumbers);
  const std::string space = kWhiteSpace;
  // '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  // The possessive ++ matches the same, as nothing follows it, and needs no memory for the way
  // back.
  return Compile(absl::StrCat("'(?:[sdmt]|ll|ve|re)",                 //
                              "| ?[", letter, "]++",                  //
                              "| ?[", number, "]++",                  //
                              "| ?[^", space, letter, number, "]++",  //
                              "|[", space, "]+(?![^", space, "])",    //
                              "|[", space, "]++"));
}

absl::StatusOr<UnicodePattern> UnicodePattern::WhiteSpace() {
  return Compile(absl::StrCat("[", kWhiteSpace, "]++"));
}

absl::StatusOr<UnicodePattern> UnicodePattern::WordCharacter() {
  return Compile(absl::StrCat(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D})", kNewLetters,
                              kNewDigits, kNewMarks, "]"));
}

absl::StatusOr<UnicodePattern> UnicodePattern::Compile(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  UnicodePattern result;
  // Anchored here rather than in each match, which would keep the compiled code from being used.
  result.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_ANCHORED, &error, &error_offset, nullptr));
  if (result.code_ == nullptr) {
    return absl::InternalError(absl::StrCat("PCRE2 error ", error, " at offset ", error_offset,
                                            " of the pattern ", pattern));
  }
  // Where machine code cannot be made (some hardened kernels), PCRE2 interprets: slower, the same.
  pcre2_jit_compile(result.code_.get(), PCRE2_JIT_COMPLETE);
  result.context_.reset(pcre2_match_context_create(nullptr));
  if (result.context_ == nullptr) return absl::ResourceExhaustedError("PCRE2 is out of memory");
  // The patterns above are linear in the text; limits made for others' patterns must not end them.
  constexpr uint32_t kNoLimit = std::numeric_limits<uint32_t>::max();
  pcre2_set_match_limit(result.context_.get(), kNoLimit);
  pcre2_set_depth_limit(result.context_.get(), kNoLimit);
  pcre2_set_heap_limit(result.context_.get(), kNoLimit);
  return result;
}

PatternMatcher::PatternMatcher(const UnicodePattern& pattern)
    : pattern_(pattern), data_(pcre2_match_data_create(1, nullptr)) {}

absl::StatusOr<size_t> PatternMatcher::MatchLength(std::string_view text, size_t position) {
  if (data_ == nullptr) return absl::ResourceExhaustedError("PCRE2 is out of memory");
  const int result =
      pcre2_match(pattern_.code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                  position, PCRE2_NO_UTF_CHECK, data_.get(), pattern_.context_.get());
  if (result == PCRE2_ERROR_NOMATCH) return 0;
  if (result < 0) {
    return absl::ResourceExhaustedError(absl::StrCat("PCRE2 gave up with error ", result,
                                                     " at offset ", position, " of a text of ",
                                                     text.size(), " bytes"));
  }
  return pcre2_get_ovector_pointer(data_.get())[1] - position;
}

}  // namespace ddl
