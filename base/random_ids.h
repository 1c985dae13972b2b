#ifndef DDL_BASE_RANDOM_IDS_H_
#define DDL_BASE_RANDOM_IDS_H_

#include <cstdint>
#include <string>

// Names that nobody else gives. Not secret. Thread-safe.

namespace ddl {

uint64_t RandomBits();
std::string NewRequestId();  // a UUID of version 4
std::string NewSpanId();     // 16 hexadecimal digits, not all 0

}  // namespace ddl

#endif  // DDL_BASE_RANDOM_IDS_H_
