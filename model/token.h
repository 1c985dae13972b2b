#ifndef DDL_MODEL_TOKEN_H_
#define DDL_MODEL_TOKEN_H_

#include <cstdint>

namespace ddl {

// Index into the vocabulary: a row of `transformer.wte.weight`. Never negative.
using TokenId = int32_t;

}  // namespace ddl

#endif  // DDL_MODEL_TOKEN_H_
