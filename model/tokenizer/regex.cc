#include "model/tokenizer/regex.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <ctime>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/tokenizer/character_set.h"
#include "model/tokenizer/regex_syntax.h"
#include "model/tokenizer/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace ddl {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
// Per place where a match could begin. The patterns of real tokenizers need a few steps for each
// character, also on a message of spaces only.
constexpr uint32_t kMaxSteps = 10'000'000;
constexpr uint32_t kMaxDepth = 1'000'000;
constexpr uint32_t kMaxHeapKib = 64 << 10;
// Between looks at the clock: places where a match could begin, and matches.
constexpr size_t kWindow = 1024;
constexpr uint32_t kFinds = 256;
constexpr int64_t kMaxNanoseconds = 5'000'000'000;

int64_t ThreadNanoseconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

struct CompileContext {
  CompileContext() : context(pcre2_compile_context_create(nullptr)) {
    if (context != nullptr) pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  }
  ~CompileContext() { pcre2_compile_context_free(context); }
  CompileContext(const CompileContext&) = delete;
  CompileContext& operator=(const CompileContext&) = delete;

  pcre2_compile_context* context;
};

std::string ErrorText(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

absl::Status OutOfMemory() { return absl::ResourceExhaustedError("PCRE2 is out of memory"); }

}  // namespace

void Regex::CodeDeleter::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

void Regex::ContextDeleter::operator()(pcre2_real_match_context_8* context) const {
  pcre2_match_context_free(context);
}

void RegexMatcher::DataDeleter::operator()(pcre2_real_match_data_8* data) const {
  pcre2_match_data_free(data);
}

absl::StatusOr<Regex> Regex::FromOniguruma(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the pattern is ", pattern.size(),
                                                   " bytes long, allowed are ", kMaxPatternBytes));
  }
  const absl::StatusOr<std::string> translated = OnigurumaToPcre2(pattern);
  if (!translated.ok()) return translated.status();
  return Compile(*translated);
}

absl::StatusOr<Regex> Regex::FromText(std::string_view text) { return Compile(EscapeRegex(text)); }

absl::StatusOr<Regex> Regex::WhiteSpace() {
  return Compile(absl::StrCat("[", WhiteSpaceItems(), "]++"));
}

absl::StatusOr<Regex> Regex::WordCharacter() {
  return Compile(absl::StrCat("[", WordItems(), R"(\x{200C}\x{200D}])"));
}

absl::StatusOr<Regex> Regex::WordsAndSymbols() {
  const std::string word = absl::StrCat(WordItems(), R"(\x{200C}\x{200D})");
  return Compile(absl::StrCat("[", word, "]++|[^", word, WhiteSpaceItems(), "]++"));
}

absl::StatusOr<Regex> Regex::Compile(const std::string& pattern) {
  const CompileContext compile_context;
  if (compile_context.context == nullptr) return OutOfMemory();
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  Regex result;
  result.code_.reset(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                    PCRE2_UTF | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT,
                    &error, &error_offset, compile_context.context));
  if (result.code_ == nullptr) return absl::InvalidArgumentError(ErrorText(error));
  // Where machine code cannot be made (some hardened kernels), PCRE2 interprets: slower, the same.
  pcre2_jit_compile(result.code_.get(), PCRE2_JIT_COMPLETE);
  result.context_.reset(pcre2_match_context_create(nullptr));
  if (result.context_ == nullptr) return OutOfMemory();
  pcre2_set_match_limit(result.context_.get(), kMaxSteps);
  pcre2_set_depth_limit(result.context_.get(), kMaxDepth);
  pcre2_set_heap_limit(result.context_.get(), kMaxHeapKib);
  return result;
}

RegexMatcher::RegexMatcher(const Regex& regex)
    : regex_(regex),
      data_(pcre2_match_data_create_from_pattern(regex.code_.get(), nullptr)),
      context_(pcre2_match_context_copy(regex.context_.get())),
      started_(ThreadNanoseconds()) {}

int RegexMatcher::Match(std::string_view text, size_t position, size_t last) {
  pcre2_set_offset_limit(context_.get(), last);
  const auto match = [&](uint32_t options) {
    return pcre2_match(regex_.code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                       position, PCRE2_NO_UTF_CHECK | options, data_.get(), context_.get());
  };
  const int result = match(0);
  // Machine code has a small stack, the interpreter the heap.
  return result == PCRE2_ERROR_JIT_STACKLIMIT ? match(PCRE2_NO_JIT) : result;
}

bool RegexMatcher::TookTooLong() { return ThreadNanoseconds() - started_ > kMaxNanoseconds; }

absl::StatusOr<std::optional<RegexMatcher::Span>> RegexMatcher::Find(std::string_view text,
                                                                     size_t position) {
  if (data_ == nullptr || context_ == nullptr) return OutOfMemory();
  const auto gave_up = [&](const std::string& why) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a regular expression of the tokenizer gave up at offset ", position,
                     " of a text of ", text.size(), " bytes: ", why));
  };
  if (++finds_ % kFinds == 0 && TookTooLong()) return gave_up("it takes too long");
  while (true) {
    const size_t last = std::min(position + kWindow, text.size());
    const int result = Match(text, position, last);
    if (result >= 0) {
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data_.get());
      return Span{ends[0], ends[1]};
    }
    if (result != PCRE2_ERROR_NOMATCH) return gave_up(ErrorText(result));
    if (last == text.size()) return std::nullopt;
    if (TookTooLong()) return gave_up("it takes too long");
    position = NextCharacter(text, PreviousCharacter(text, last + 1));
  }
}

absl::StatusOr<size_t> RegexMatcher::MatchLength(std::string_view text, size_t position) {
  if (data_ == nullptr || context_ == nullptr) return OutOfMemory();
  const int result = Match(text, position, position);
  if (result == PCRE2_ERROR_NOMATCH) return 0;
  if (result < 0) return absl::ResourceExhaustedError(ErrorText(result));
  return pcre2_get_ovector_pointer(data_.get())[1] - position;
}

}  // namespace ddl
