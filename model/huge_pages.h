#ifndef DDL_MODEL_HUGE_PAGES_H_
#define DDL_MODEL_HUGE_PAGES_H_

#include <ATen/core/Tensor.h>

namespace ddl {

// A tensor on the CPU, not initialised, in memory that the kernel is asked to back with huge pages
// where whole ones fit. Weights, which are read once a step, are then limited by memory's
// bandwidth, and not by the processor's look-ups of pages and its prefetching, which stops at the
// end of each: of 4 KiB, that halved a step's speed. Memory is taken as pages are first written.
at::Tensor EmptyOnHugePages(at::IntArrayRef sizes, at::ScalarType type);

}  // namespace ddl

#endif  // DDL_MODEL_HUGE_PAGES_H_
