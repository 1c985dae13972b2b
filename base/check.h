#ifndef DDL_BASE_CHECK_H_
#define DDL_BASE_CHECK_H_

#include <cstdio>
#include <cstdlib>

// Ends the process when our own invariant does not hold. For states that no input can cause;
// a caller's mistake gets an absl::Status instead.
#define DDL_CHECK(condition, message)                                                       \
  do {                                                                                      \
    if (!(condition)) [[unlikely]] {                                                        \
      std::fprintf(stderr, "%s:%d: check failed: %s: %s\n", __FILE__, __LINE__, #condition, \
                   message);                                                                \
      std::abort();                                                                         \
    }                                                                                       \
  } while (false)

#endif  // DDL_BASE_CHECK_H_
