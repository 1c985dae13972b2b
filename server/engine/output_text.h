#ifndef DDL_SERVER_ENGINE_OUTPUT_TEXT_H_
#define DDL_SERVER_ENGINE_OUTPUT_TEXT_H_

#include <cstddef>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "model/token.h"
#include "model/tokenizer/tokenizer.h"

namespace ddl {

// The text of one completion as its tokens come: whole UTF-8 characters only, and never a part of
// a stop string. Text that could be the beginning of one is held until that is settled, and with
// it the tokens that it came from. The pieces, concatenated, are the whole text.
//
// Stop strings are looked for after every token, in what the text gained since it was last sure
// that none begins there. The match that begins first wins; of those that begin together, the
// one listed first. It cuts the text only: every token that came is released with it, also those
// whose text is cut off.
//
// Bytes of an unfinished character hold no token back: such a token goes before its text.
class OutputText {
 public:
  struct Options {
    bool skip_special_tokens = true;
    std::vector<std::string> stop;  // none empty
    bool include_stop_str_in_output = false;
  };
  struct Piece {
    std::string text;       // ready to be sent
    size_t num_tokens = 0;  // how many tokens, oldest first of those not yet released, go with it
    std::optional<std::string> matched_stop;  // the text ends here
  };
  // What a token is to the text.
  struct Token {
    TokenId id = 0;
    bool in_text = true;  // false for a token that only ends the completion
    // Whether stop strings count yet (min_tokens). Text from before is sent at once, so that no
    // match begins in it.
    bool may_stop = true;
    bool last = false;  // nothing follows: everything held is released
  };

  // `tokenizer` may be null: the text stays empty. It must outlive this object.
  OutputText(const Tokenizer* tokenizer, Options options);

  // Not to be called after a match or the last token.
  Piece Append(const Token& token);

 private:
  // Bytes at the end of window_ that could begin a stop string.
  size_t PossibleStopBytes() const;
  // The match in window_: where it begins and which it is.
  struct Match {
    size_t begin = 0;
    const std::string* stop = nullptr;
  };
  std::optional<Match> FindStop() const;
  size_t ReleaseTokens(bool all);

  Options options_;
  std::optional<StreamDecoder> decoder_;
  std::string window_;             // decoded, not released
  size_t num_released_ = 0;        // bytes
  std::deque<size_t> token_ends_;  // of each token held: bytes of text when it had come
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_OUTPUT_TEXT_H_
